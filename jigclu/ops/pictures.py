"""Pictures for people: training images as the network sees them, and confusions of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks, make_grid

from jigclu.system.to_device import per_channel

SHOWN = 8  # Images of a picture of training images.
_COLUMNS = 4
_OPACITY = 0.7  # Of the colors of classes.
_SIDE = 400  # Least side of a picture of confusions, in pixels.


@torch.no_grad()
def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns normalized images, float [images, 3, height, width], as uint8 of the same shape."""
    center, spread = (per_channel(values, images.device) for values in (mean, std))
    return ((images * spread + center).clamp(0, 1) * 255).round().to(torch.uint8)


def image_grid(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Draws normalized images side by side.

    Args:
      images: float [images, 3, height, width].
      mean: of RGB in [0, 1], with which the images are normalized.
      std: likewise.

    Returns:
      uint8 [3, picture_height, picture_width], on the device of the images.
    """
    return make_grid(to_pixels(images, mean, std), nrow=_COLUMNS, pad_value=255)


def segmentation_picture(image: Tensor, truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Draws an image, its ground truth and a prediction side by side, in VOC's colors.

    Args:
      image: uint8 [3, height, width].
      truth: integers [height, width] in [0, classes); other pixels, which are ignored, get no
        color.
      predicted: likewise.
      classes: number of classes.

    Returns:
      uint8 [3, height, 3 * width], on the CPU.
    """
    image = image.cpu()
    numbers = torch.arange(classes).view(-1, 1, 1)
    drawn = [
        draw_segmentation_masks(image, mask.cpu() == numbers, _OPACITY, voc_colors(classes))
        for mask in (truth, predicted)
    ]
    return torch.cat([image, *drawn], 2)


def voc_colors(classes: int) -> list[tuple[int, int, int]]:
    """Returns the RGB colors of VOC's palette (Everingham et al., IJCV 2015): class 0 is black.

    Every third bit of a class number belongs to the same color, the lowest bit to its highest.
    """
    return [(_color(number), _color(number >> 1), _color(number >> 2)) for number in range(classes)]


def _color(number: int) -> int:
    return sum((number >> 3 * place & 1) << 7 - place for place in range(8))


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
