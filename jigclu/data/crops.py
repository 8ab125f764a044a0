"""Images as sets of random crops: the patches of a jigsaw, the two views of SimCLR."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from absl import logging
from torch import Tensor
from torch.utils.data import Dataset

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size, crop_resize
from jigclu.data.sources import Source
from jigclu.ops.jigsaw import Box
from jigclu.ops.schedules import patch_size_at
from jigclu.system import seeds
from jigclu.system.errors import UserError

# So many unreadable images in a row are a broken disk or the wrong files.
UNREADABLE_IN_A_ROW = 100
_FACTORS = (1, 2, 4, 8)  # By which JPEG decoders shrink.

# Draws the crops of an image of (height, width) pixels. It is pickled to worker processes:
# a functools.partial of a module-level function.
Draw = Callable[[np.random.Generator, int, int], list[Box]]


class CropSample(NamedTuple):
    """The crops of one image.

    crops: uint8 [crops, 3, size, size], in the order drawn, not yet augmented.
    unreadable: images that were skipped to find a readable one.
    """

    crops: Tensor
    unreadable: int


class _Crops:
    """The crops of one image, drawn at its full size, which decoding may shrink."""

    def __init__(self, draw: Callable[[int, int], list[Box]], size: int) -> None:
        """Keeps how to draw them, of height and width, and the side to resize to, pixels."""
        self._draw = draw
        self._size = size
        self._full = (0, 0)
        self._boxes: list[Box] = []

    def reduction(self, height: int, width: int) -> int:
        """Returns by how much decoding may shrink: every crop keeps `size` pixels per side."""
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


class CropDataset(Dataset[CropSample]):
    """Images, each as several random crops of one size; indexed by (epoch, index).

    The crops are a function of (seed, epoch, index), whichever rank or worker draws them.
    Flip and color follow on the device.
    """

    def __init__(
        self,
        *,
        source: Source,
        seed: int,
        draw: Draw,
        size: int,
        smaller_sizes: Sequence[tuple[int, int]],
        least_side: int,
        scaled_decoding: bool,
    ) -> None:
        """Keeps the settings, which their owner has checked; reads nothing yet.

        Args:
          source: of the images.
          seed: of the run.
          draw: draws the crops of an image.
          size: side to which crops are resized, pixels.
          smaller_sizes: (epoch, pixels): sizes of earlier epochs; see `schedules.patch_size_at`.
          least_side: images whose shorter side has fewer pixels count as unreadable.
          scaled_decoding: shrink JPEG while decoding, as far as no crop becomes smaller than
            the size to which it is resized.
        """
        self._source = source
        self._seed = seed
        self._draw = draw
        self._size = size
        self._smaller_sizes = smaller_sizes
        self._least_side = least_side
        self._scaled_decoding = scaled_decoding

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> CropSample:
        """Returns the crops of image `index` as drawn in `epoch`.

        An unreadable image is replaced by the next readable one, and counted.

        Raises:
          UserError: too many unreadable images in a row.
        """
        epoch, index = epoch_and_index
        size = patch_size_at(epoch, self._size, self._smaller_sizes)
        crops = _Crops(functools.partial(self._draw_boxes, epoch, index), size)
        image, unreadable = self._readable(
            index, crops.reduction if self._scaled_decoding else at_full_size
        )
        resized = [crop_resize(image, box, size) for box in crops.of(image)]
        return CropSample(torch.stack(resized), unreadable)

    def _draw_boxes(self, epoch: int, index: int, height: int, width: int) -> list[Box]:
        return self._draw(seeds.image_crops(self._seed, epoch, index), height, width)

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
        if min(height, width) < self._least_side:
            raise UnreadableImageError(
                f"{width}x{height} pixels; the shorter side must have {self._least_side} or more"
            )
        return image
