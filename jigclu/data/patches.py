"""The data set of pre-training: the patches of images."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from absl import logging
from torch import Tensor
from torch.utils.data import Dataset

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size, crop_resize
from jigclu.data.sources import Source
from jigclu.ops.crops import check_crop, random_generator, random_resized_crop
from jigclu.ops.jigsaw import Box, check_grid, patch_boxes
from jigclu.ops.schedules import patch_size_at
from jigclu.system.errors import UserError

# So many unreadable images in a row are a broken disk or the wrong files.
UNREADABLE_IN_A_ROW = 100
_FACTORS = (1, 2, 4, 8)  # By which JPEG decoders shrink.


class PatchSample(NamedTuple):
    """The patches of one image.

    patches: uint8 [grid**2, 3, size, size], in patch order, not yet augmented.
    image_index: the index that was asked for.
    unreadable: images that had to be skipped to find a readable one.
    """

    patches: Tensor
    image_index: int
    unreadable: int


class _Crops:
    """The crops of one image, drawn at its full size, which decoding may shrink."""

    def __init__(self, draw: Callable[[int, int], list[Box]], size: int) -> None:
        """Keeps how to draw them, of height and width, and the side of the patches, pixels."""
        self._draw = draw
        self._size = size
        self._full = (0, 0)
        self._boxes: list[Box] = []

    def reduction(self, height: int, width: int) -> int:
        """Returns by how much decoding may shrink: every crop keeps the pixels of its patch."""
        self._full, self._boxes = (height, width), []
        if min(height, width) < _FACTORS[1] * self._size:
            return 1
        self._boxes = self._draw(height, width)
        least = min(min(box.height, box.width) for box in self._boxes)
        return max(factor for factor in _FACTORS if factor == 1 or least >= factor * self._size)

    def of(self, image: Tensor) -> list[Box]:
        """Returns the crops in the pixels of an image [3, height, width], shrunk or not."""
        height, width = image.shape[1:]
        if not self._boxes:  # Nothing to shrink.
            return self._draw(height, width)
        full_height, full_width = self._full
        return [_scaled(box, height / full_height, width / full_width) for box in self._boxes]


def _scaled(box: Box, vertical: float, horizontal: float) -> Box:
    top, bottom = round(box.top * vertical), round((box.top + box.height) * vertical)
    left, right = round(box.left * horizontal), round((box.left + box.width) * horizontal)
    return Box(top, left, bottom - top, right - left)


class PatchDataset(Dataset[PatchSample]):
    """Cuts images into randomly cropped patches; indexed by (epoch, index).

    The crops are a function of (seed, epoch, index) alone, whichever rank or
    worker draws them. Flip and color follow on the device.
    """

    def __init__(
        self,
        *,
        source: Source,
        seed: int,
        grid: int,
        cross_ratio: float,
        patch_size: int,
        smaller_patches: Sequence[tuple[int, int]],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        scaled_decoding: bool,
    ) -> None:
        """Keeps the settings; reads nothing yet.

        Args:
          source: of the images.
          seed: of the run.
          grid: patches a side of an image, >= 2 (published 2).
          cross_ratio: overlap of the regions, in [0, 0.5] (published 0.3).
          patch_size: side of a patch, pixels (published 112).
          smaller_patches: of earlier epochs; see `schedules.patch_size_at`.
          scale: least and most area of a crop, share of its region (published 0.2, 1).
          ratio: least and most width / height of a crop (published 3/4, 4/3).
          scaled_decoding: shrink JPEG while decoding, by as much as every crop can take
            and still be no smaller than its patch.

        Raises:
          UserError: a value out of its range.
        """
        check_grid(grid, cross_ratio)
        check_crop(scale, ratio)
        if patch_size < 1:
            raise UserError(f"patch_size is {patch_size}; it must be 1 pixel or more")
        self._source = source
        self._seed = seed
        self._grid = grid
        self._cross_ratio = cross_ratio
        self._patch_size = patch_size
        self._smaller_patches = smaller_patches
        self._scale = scale
        self._ratio = ratio
        self._scaled_decoding = scaled_decoding

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> PatchSample:
        """Returns the patches of image `index` as drawn in `epoch`.

        An unreadable image is replaced by the next readable one, and counted.

        Raises:
          UserError: too many unreadable images in a row.
        """
        epoch, index = epoch_and_index
        size = patch_size_at(epoch, self._patch_size, self._smaller_patches)
        crops = _Crops(functools.partial(self._draw, epoch, index), size)
        image, unreadable = self._readable(
            index, crops.reduction if self._scaled_decoding else at_full_size
        )
        patches = [crop_resize(image, crop, size) for crop in crops.of(image)]
        return PatchSample(torch.stack(patches), index, unreadable)

    def _draw(self, epoch: int, index: int, height: int, width: int) -> list[Box]:
        regions = patch_boxes(height, width, self._grid, self._cross_ratio)
        random = random_generator(self._seed, epoch, index)
        return [random_resized_crop(random, region, self._scale, self._ratio) for region in regions]

    def _readable(self, index: int, reduction: Reduction) -> tuple[Tensor, int]:
        """Returns the first readable image from index on, and how many were skipped."""
        length = len(self._source)
        limit = min(UNREADABLE_IN_A_ROW, length)
        for skipped in range(limit):
            candidate = (index + skipped) % length
            try:
                return self._read(candidate, reduction), skipped
            except UnreadableImageError as error:
                name, reason = self._source.name(candidate), error
                logging.warning("unreadable image skipped: %s (%s)", name, reason)
        raise UserError(
            f"{limit} images in a row are unreadable, the last is {name} ({reason}): "
            "check that the data are images and were copied whole"
        )

    def _read(self, index: int, reduction: Reduction) -> Tensor:
        image = self._source.read(index, reduction)
        _, height, width = image.shape
        if min(height, width) < self._grid:
            raise UnreadableImageError(
                f"{width}x{height} pixels are fewer than its {self._grid}x{self._grid} patches"
            )
        return image
