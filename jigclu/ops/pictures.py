"""Pictures for people: training images as the network sees them, and confusions of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.utils import make_grid

from jigclu.system.to_device import per_channel

SHOWN = 8  # Images of a picture of training images.
_COLUMNS = 4
_SIDE = 400  # Least side of a picture of confusions, in pixels.


@torch.no_grad()
def image_grid(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Draws normalized images side by side.

    Args:
      images: float [images, 3, height, width].
      mean: of RGB in [0, 1], with which the images are normalized.
      std: likewise.

    Returns:
      uint8 [3, picture_height, picture_width], on the device of the images.
    """
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    pixels = (images * spread + center).clamp(0, 1)
    return (make_grid(pixels, nrow=_COLUMNS, pad_value=1.0) * 255).round().to(torch.uint8)


def confusion_picture(confusion: Tensor) -> Tensor:
    """Draws which classes are mistaken for which: the darker, the larger the share.

    Args:
      confusion: int64 [classes, classes], images by true class (row) and predicted class.

    Returns:
      uint8 [3, side, side], with a pixel or a square of pixels per cell.
    """
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    # Rare confusions matter most: the square root shows a share of 1 % as a tenth.
    gray = ((1 - shares.sqrt()) * 255).round().to(torch.uint8)
    zoom = max(1, _SIDE // len(gray))
    return gray.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).expand(3, -1, -1)
