"""What surrounds an encoder: normalization of its images, pooling of its feature maps."""

from collections.abc import Sequence

from torch import Tensor

from jigclu.system.errors import check
from jigclu.system.to_device import per_channel


def check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError for a mean or a std that is not that of RGB images."""
    check(len(mean) == 3, "mean", mean, "three numbers, of red, green and blue")
    check(
        len(std) == 3 and all(deviation > 0 for deviation in std),
        "std",
        std,
        "three numbers above 0, of red, green and blue",
    )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Maps bytes to zero mean and unit deviation: uint8 to float32 [batch, 3, height, width]."""
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    return (images.float() / 255 - center) / spread


def pool(maps: Tensor) -> Tensor:
    """Averages feature maps [batch, channels, height, width] to float32 [batch, channels]."""
    return maps.float().mean((2, 3))
