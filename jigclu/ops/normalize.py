"""What surrounds an encoder: normalization of its images, pooling of its feature maps."""

from torch import Tensor

from jigclu.system.errors import UserError
from jigclu.system.to_device import per_channel


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises UserError unless there are three means and three deviations above 0."""
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise UserError(
            f"mean is {tuple(mean)} and std {tuple(std)}; expected three numbers each, "
            "of red, green and blue, std above 0"
        )


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Maps bytes to zero mean and unit deviation: uint8 to float32 [batch, 3, height, width]."""
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    return (images.float() / 255 - center) / spread


def pool(maps: Tensor) -> Tensor:
    """Averages feature maps [batch, channels, height, width] to float32 [batch, channels]."""
    return maps.float().mean((2, 3))
