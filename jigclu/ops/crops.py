"""Random crops of images: pure geometry, no pixels."""

import math
from typing import NamedTuple

import numpy as np

from jigclu.ops.jigsaw import Box, patch_boxes
from jigclu.system.errors import check

_TRIES = 10


class ScaledCrop(NamedTuple):
    """A square crop of a resized image.

    height, width: to which the image is resized, pixels.
    top, left: of the crop in the resized image, pixels; 0 along a side shorter than the crop.
    """

    height: int
    width: int
    top: int
    left: int


def check_crop(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """Raises UserError for a crop_scale or a crop_ratio out of range."""
    check(
        0 < scale[0] <= scale[1] <= 1,
        "crop_scale",
        scale,
        "(least, most) in (0, 1], the share of the region's area that a crop keeps",
    )
    check(
        0 < ratio[0] <= ratio[1] < math.inf,
        "crop_ratio",
        ratio,
        "(least, most), finite and above 0, the width of a crop over its height",
    )


def jigsaw_crops(
    random: np.random.Generator,
    height: int,
    width: int,
    *,
    grid: int,
    cross_ratio: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> list[Box]:
    """Draws one crop inside each of the grid**2 regions of an image, in patch order.

    Chen et al., CVPR 2021, section 3.4.

    Args:
      random: advanced by the draws.
      height: image height, pixels, at least grid.
      width: image width, pixels, at least grid.
      grid: patches per side (published 2).
      cross_ratio: overlap of the regions (published 0.3); see `patch_boxes`.
      scale: least and most share of the area of its region (published 0.2, 1).
      ratio: least and most width / height (published 3/4, 4/3).
    """
    regions = patch_boxes(height, width, grid, cross_ratio)
    return [random_resized_crop(random, region, scale, ratio) for region in regions]


def two_views(
    random: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> list[Box]:
    """Draws two crops of the whole image (SimCLR: Chen et al., ICML 2020, appendix A).

    Args:
      random: advanced by the draws.
      height: image height, pixels.
      width: image width, pixels.
      scale: least and most share of the image's area (published 0.08, 1).
      ratio: least and most width / height (published 3/4, 4/3).
    """
    whole = Box(0, 0, height, width)
    return [random_resized_crop(random, whole, scale, ratio) for _ in range(2)]


def random_resized_crop(
    random: np.random.Generator,
    region: Box,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws a crop from the distribution of torchvision's RandomResizedCrop.

    The area is uniform in scale and log(width / height) is uniform in log(ratio). If 10 draws
    do not fit, the result is the largest central crop with an allowed ratio.

    Args:
      random: advanced by the draws.
      region: contains the crop, pixels.
      scale: least and most share of the area of the region, in (0, 1].
      ratio: least and most width / height.

    Returns:
      A crop of at least one pixel inside the region.
    """
    _, _, height, width = region
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(low, high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height, endpoint=True))
            left = int(random.integers(width - crop_width, endpoint=True))
            return Box(region.top + top, region.left + left, crop_height, crop_width)
    return _central_crop(region, ratio)


def scaled_crop(
    random: np.random.Generator, height: int, width: int, scale: tuple[float, float], size: int
) -> ScaledCrop:
    """Draws a factor by which to resize an image, and then a square crop, both uniformly.

    The usual augmentation of semantic segmentation (Chen et al., arXiv 1706.05587, section 4).

    Args:
      random: advanced by three draws.
      height: image height, pixels.
      width: image width, pixels.
      scale: least and most factor.
      size: side of the crop, pixels.
    """
    factor = random.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in (height, width))
    top, left = (
        int(random.integers(max(0, side - size), endpoint=True)) for side in (height, width)
    )
    return ScaledCrop(height, width, top, left)


def _central_crop(region: Box, ratio: tuple[float, float]) -> Box:
    top, left, height, width = region
    crop_height = max(1, min(height, round(width / ratio[0])))
    crop_width = max(1, min(width, round(height * ratio[1])))
    return Box(
        top + (height - crop_height) // 2,
        left + (width - crop_width) // 2,
        crop_height,
        crop_width,
    )
