"""Before and after an encoder: image normalization and average pooling."""

from collections.abc import Sequence

from torch import Tensor

from jigclu.system.errors import check
from jigclu.system.to_device import per_channel


def check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError unless mean and std have three channels and std is above 0."""
    check(len(mean) == 3, "mean", mean, "three numbers, of red, green and blue")
    check(
        len(std) == 3 and all(deviation > 0 for deviation in std),
        "std",
        std,
        "three numbers above 0, of red, green and blue",
    )


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalizes images per channel: (images / 255 - mean) / std.

    Args:
      images: uint8 [batch, 3, height, width].
      mean: of red, green and blue in [0, 1].
      std: of red, green and blue.

    Returns:
      float32 [batch, 3, height, width].
    """
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    return (images.float() / 255 - center) / spread


def pool(maps: Tensor) -> Tensor:
    """Averages feature maps [batch, channels, height, width] to float32 [batch, channels]."""
    return maps.float().mean((2, 3))
