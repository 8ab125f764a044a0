"""Images as sets of random crops: the patches of a jigsaw, the two views of SimCLR."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jigclu.data.decode import (
    Reduction,
    UnreadableImageError,
    at_full_size,
    crop_resize,
    has_one_color,
)
from jigclu.data.sources import Source
from jigclu.data.substitutes import Substitutes
from jigclu.ops.jigsaw import Box
from jigclu.ops.schedules import patch_size_at
from jigclu.system import seeds
from jigclu.system.errors import UserError

# This many unreadable images in place of one mean a broken disk or the wrong files.
_MOST_UNREADABLE = 100
_FACTORS = (1, 2, 4, 8)  # By which JPEG decoders can shrink an image.

# Draws the crops of an image from (random, height, width), sides in pixels. Pickled to worker
# processes, so it must be a module-level function or a functools.partial of one.
Draw = Callable[[np.random.Generator, int, int], list[Box]]


class CropSample(NamedTuple):
    """The crops of one image.

    crops: uint8 [crops, 3, size, size], in the order drawn, not yet augmented.
    unreadable: why the image, and others tried in its place, cannot be read, by index.
    one_color: index of the image if all its pixels are the same, else empty.
    """

    crops: Tensor
    unreadable: dict[int, str]
    one_color: tuple[int, ...]


class CutImage(NamedTuple):
    """An image and its crops.

    number: index of the image; not the one asked for if that is unreadable.
    image: uint8 [3, height, width], perhaps shrunk while decoding.
    boxes: of the crops, in pixels of the image.
    crops: uint8 [crops, 3, size, size].
    """

    number: int
    image: Tensor
    boxes: list[Box]
    crops: Tensor


class _CropPlan:
    """The crops of one image, drawn at full size although decoding may shrink the image."""

    def __init__(self, draw: Callable[[int, int], list[Box]], size: int) -> None:
        """Draws nothing yet.

        Args:
          draw: maps height and width, pixels, to crops.
          size: side to which crops will be resized, pixels.
        """
        self._draw = draw
        self._size = size
        self._full = (0, 0)
        self._boxes: list[Box] = []

    def reduction(self, height: int, width: int) -> int:
        """Returns the largest factor that leaves every crop at least `size` pixels per side."""
        self._full, self._boxes = (height, width), []
        if min(height, width) < _FACTORS[1] * self._size:
            return 1
        self._boxes = self._draw(height, width)
        least = min(min(box.height, box.width) for box in self._boxes)
        return max(factor for factor in _FACTORS if factor == 1 or least >= factor * self._size)

    def boxes(self, image: Tensor) -> list[Box]:
        """Returns the crops in pixels of the decoded image [3, height, width]."""
        height, width = image.shape[1:]
        if not self._boxes:  # Decoded at full size.
            return self._draw(height, width)
        full_height, full_width = self._full
        return [_scale_box(box, height / full_height, width / full_width) for box in self._boxes]


def _scale_box(box: Box, vertical: float, horizontal: float) -> Box:
    top, bottom = round(box.top * vertical), round((box.top + box.height) * vertical)
    left, right = round(box.left * horizontal), round((box.left + box.width) * horizontal)
    return Box(top, left, bottom - top, right - left)


class CropDataset(Dataset[CropSample]):
    """Several random crops of each image, resized to one size; indexed by (epoch, index).

    The crops depend only on (seed, epoch, index), not on the rank or worker that draws them.
    Flips and color changes follow on the device.
    """

    def __init__(
        self,
        *,
        source: Source,
        seed: int,
        batch_size: int,
        draw: Draw,
        size: int,
        smaller_sizes: Sequence[tuple[int, int]],
        least_side: int,
        scaled_decoding: bool,
    ) -> None:
        """Reads nothing yet. The caller has checked the settings.

        Args:
          source: images.
          seed: of the run.
          batch_size: images in the global batch, of which substitutes for unreadable images are
            no part.
          draw: draws the crops of an image.
          size: side to which crops are resized, pixels.
          smaller_sizes: (epoch, pixels) pairs, the sizes of early epochs; see
            `schedules.patch_size_at`.
          least_side: images with a shorter side than this, in pixels, count as unreadable.
          scaled_decoding: whether to shrink JPEG images while decoding, as long as no crop
            becomes smaller than the size to which it is resized.
        """
        self._source = source
        self._seed = seed
        self._draw = draw
        self._size = size
        self._smaller_sizes = smaller_sizes
        self._least_side = least_side
        self._scaled_decoding = scaled_decoding
        self._substitutes = Substitutes(
            seed=seed, length=len(source), batch_size=batch_size, is_readable=self._is_readable
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> CropSample:
        """Returns the crops of image `index` in `epoch`.

        Another image takes the place of an unreadable one; see `jigclu.data.substitutes`.

        Raises:
          UserError: too many images that could take its place are unreadable, too.
        """
        epoch, index = epoch_and_index
        size = patch_size_at(epoch, self._size, self._smaller_sizes)
        cut, unreadable = self._cut(epoch, index, size)
        one_color = (cut.number,) if has_one_color(cut.image) else ()
        return CropSample(cut.crops, unreadable, one_color)

    def cut(self, index: int) -> CutImage:
        """Returns an image with its crops of the first epoch, at the size of the last epochs."""
        return self._cut(0, index, self._size)[0]

    def _cut(self, epoch: int, index: int, size: int) -> tuple[CutImage, dict[int, str]]:
        """Cuts an image or another one in its place; also returns why images are unreadable."""
        plan = _CropPlan(functools.partial(self._draw_boxes, epoch, index), size)
        reduction = plan.reduction if self._scaled_decoding else at_full_size
        unreadable: dict[int, str] = {}
        for candidate in self._candidates(epoch, index):
            try:
                image = self._read(candidate, reduction)
            except UnreadableImageError as error:
                unreadable[candidate] = str(error)
                continue
            boxes = plan.boxes(image)
            crops = torch.stack([crop_resize(image, box, size) for box in boxes])
            return CutImage(candidate, image, boxes, crops), unreadable
        last, reason = list(unreadable.items())[-1]
        raise UserError(
            f"{len(unreadable)} consecutive images are unreadable, the last one is "
            f"{self._source.name(last)} ({reason}): check that the files are images and were "
            "copied completely"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        yield from self._substitutes.candidates(epoch, index, _MOST_UNREADABLE - 1)

    def _is_readable(self, index: int) -> bool:
        try:
            self._read(index, at_full_size)
        except UnreadableImageError:
            return False
        return True

    def _draw_boxes(self, epoch: int, index: int, height: int, width: int) -> list[Box]:
        return self._draw(seeds.image_crops(self._seed, epoch, index), height, width)

    def _read(self, index: int, reduction: Reduction) -> Tensor:
        image = self._source.read(index, reduction)
        _, height, width = image.shape
        if min(height, width) < self._least_side:
            raise UnreadableImageError(
                f"{width}x{height} pixels; the shorter side must have {self._least_side} or more"
            )
        return image
