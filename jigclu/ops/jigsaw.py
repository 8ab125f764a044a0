"""Jigsaw geometry: patch regions, montages, and one feature vector per patch.

Chen et al., CVPR 2021, section 3.1. A grid of m cuts each image into m**2 patches, numbered
column by column. The patches of a batch are shuffled into slots, numbered row by row; m**2
slots make a montage. Two images a and b, m = 2:

    image a    image b         montage 0    montage 1
    a0 | a2    b0 | b2          b3 | a0      a1 | b1
    ---+---    ---+---   ->     ---+---      ---+---
    a1 | a3    b1 | b3          a2 | b0      b2 | a3

Patch p of image i of a global batch of n images has the number p * n + i, so the permutation
of this example is (7, 0, 4, 1, 2, 3, 5, 6). Column by column is also the class order of the
published location head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.system import seeds
from jigclu.system.errors import check

# Where the patches of an image go: see `arrange_patches`.
ARRANGEMENTS = ("anywhere", "apart", "together")


class Box(NamedTuple):
    """A rectangle of pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def check_grid(grid: int, cross_ratio: float) -> None:
    """Raises UserError for a grid or a cross_ratio out of range."""
    check(grid >= 2, "grid", grid, "2 or more patches per side")
    check(
        0 <= cross_ratio <= 0.5,
        "cross_ratio",
        cross_ratio,
        "in [0, 0.5], the share of a side by which a patch exceeds 1 / grid",
    )


def place_names(places: int) -> list[str]:
    """Returns the names of the places of a grid in patch order, such as "bottom left"."""
    grid = math.isqrt(places)
    rows = ["top", "bottom"] if grid == 2 else [f"row {number}" for number in range(1, grid + 1)]
    columns = ["left", "right"] if grid == 2 else [f"column {n}" for n in range(1, grid + 1)]
    return [f"{row} {column}" for column in columns for row in rows]


def patch_boxes(height: int, width: int, grid: int, cross_ratio: float) -> list[Box]:
    """Returns the grid**2 regions of one image, in patch order (column-major).

    Every region spans 1 / grid + cross_ratio of both sides. The outer regions touch the edges
    of the image and the others are evenly spaced between them, so that neighbors overlap
    (published: grid 2 and cross_ratio 0.3, regions of 80% per side).

    Args:
      height: image height, pixels, at least grid.
      width: image width, pixels, at least grid.
      grid: patches per side, >= 2.
      cross_ratio: in [0, 0.5].
    """
    tops, span_height = _starts(height, grid, cross_ratio)
    lefts, span_width = _starts(width, grid, cross_ratio)
    return [Box(top, left, span_height, span_width) for left in lefts for top in tops]


def _starts(side: int, grid: int, cross_ratio: float) -> tuple[list[int], int]:
    span = min(side, max(1, round(side * (1 / grid + cross_ratio))))
    return [round(k * (side - span) / (grid - 1)) for k in range(grid)], span


def stitch_montages(slots: Tensor, grid: int) -> Tensor:
    """Stitches consecutive groups of grid**2 patches into montages, slots row-major.

    Args:
      slots: [montages * grid**2, channels, size, size].
      grid: slots per side.

    Returns:
      [montages, channels, grid * size, grid * size], same dtype.
    """
    _, channels, height, width = slots.shape
    tiles = slots.reshape(-1, grid, grid, channels, height, width)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, grid * height, grid * width)


def check_pooling_map(pooling_map: int | None, grid: int) -> None:
    """Raises UserError unless grid divides the side to which feature maps are resized."""
    check(
        pooling_map is None or (pooling_map >= grid and pooling_map % grid == 0),
        "pooling_map",
        pooling_map,
        f"a multiple of grid = {grid}, or None to pool the encoder's feature map as it is",
    )


def split_features(features: Tensor, grid: int, pooling_map: int | None) -> Tensor:
    """Pools feature maps to one vector per slot.

    The published code first resizes the map to 8x8 by bilinear interpolation. Without it the
    windows of adaptive pooling overlap if grid does not divide the side of the map: on a 7x7
    map both windows of a row contain column 3.

    Args:
      features: [montages, channels, height, width].
      grid: slots per side.
      pooling_map: side to which the map is resized, a multiple of grid; None keeps its size.

    Returns:
      [montages * grid**2, channels], slots row-major within a montage.
    """
    if pooling_map is not None:
        features = functional.interpolate(features, (pooling_map, pooling_map), mode="bilinear")
    pooled = functional.adaptive_avg_pool2d(features, (grid, grid))
    return pooled.flatten(2).transpose(1, 2).flatten(0, 1)


def global_permutation(seed: int, step: int, count: int) -> Tensor:
    """Draws which patch each slot of the global batch shows.

    The permutation depends only on (seed, step), so all ranks draw the same one without
    communication.

    Args:
      seed: of the run.
      step: the step, from 0.
      count: patches in the global batch, grid**2 * batch.

    Returns:
      int64 [count] on the CPU: slot s of the global batch shows patch permutation[s].
    """
    return torch.randperm(count, generator=seeds.patch_order(seed, step))


def check_siblings(siblings: str) -> None:
    """Raises UserError unless `arrange_patches` knows the arrangement."""
    expected = "one of " + ", ".join(map(repr, ARRANGEMENTS))
    check(siblings in ARRANGEMENTS, "siblings", siblings, expected)


def arrange_patches(siblings: str, seed: int, step: int, images: int, grid: int) -> Tensor:
    """Draws which patch each slot shows, with the patches of an image anywhere, apart or together.

    - Anywhere: `global_permutation`, as published.
    - Apart: no montage shows two patches of an image. The images get a random cyclic order, and
      montage m shows the images at m + shift for grid**2 different random shifts. All pairs of
      images are equally likely to meet.
    - Together: each montage shows the patches of one image.

    Each image distributes its patches among its montages at random, and each montage its patches
    among its slots. A montage of patches that are apart may thus show two top left ones; otherwise
    each place would follow from the others. All ranks draw the same without communication.

    Args:
      siblings: "anywhere", "apart" or "together".
      seed: of the run.
      step: the step, from 0.
      images: in the global batch; grid**2 or more if siblings are apart.
      grid: patches per side.

    Returns:
      int64 [images * grid**2] on the CPU: slot s of the global batch shows patch result[s].
    """
    places = grid**2
    if siblings == "anywhere":
        return global_permutation(seed, step, images * places)
    generator = seeds.patch_order(seed, step)
    order = torch.randperm(images, generator=generator)
    if siblings == "apart":
        shifts = torch.randperm(images, generator=generator)[:places]
    else:
        shifts = torch.zeros(places, dtype=torch.int64)
    image = order[(torch.arange(images)[:, None] + shifts) % images]
    # Row i has the numbers of the patches of image i, one for each shift.
    patch = _random_orders(images, places, generator)[image, torch.arange(places)]
    slots = _random_orders(images, places, generator)
    return (patch * images + image).gather(1, slots).flatten()


def _random_orders(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Returns independent permutations of range(count), int64 [rows, count]."""
    # A stable sort, because ranks on different processors must treat equal numbers alike.
    return torch.rand(rows, count, generator=generator).argsort(dim=1, stable=True)


def patch_locations(permutation: Tensor, batch_size: int) -> Tensor:
    """Returns the location class of each slot: the number of its patch within the image.

    Args:
      permutation: int64 [slots], patch numbers in the global batch.
      batch_size: images in the global batch.

    Returns:
      int64 [slots] in [0, grid**2).
    """
    return torch.div(permutation, batch_size, rounding_mode="floor")
