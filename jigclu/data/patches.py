"""The data set of pre-training: the patches of images."""

from typing import NamedTuple

import torch
from absl import logging
from torch import Tensor
from torch.utils.data import Dataset

from jigclu.crops import check_crop, generator_of, random_resized_crop
from jigclu.data.decode import UnreadableImageError, crop_resize
from jigclu.data.sources import Source
from jigclu.errors import UserError
from jigclu.jigsaw import check_grid, patch_boxes

# So many unreadable images in a row are a broken disk or the wrong files.
UNREADABLE_IN_A_ROW = 100


class PatchSample(NamedTuple):
    """The patches of one image.

    patches: uint8 [grid**2, 3, size, size], in patch order, not yet augmented.
    image_index: the index that was asked for.
    unreadable: images that had to be skipped to find a readable one.
    """

    patches: Tensor
    image_index: int
    unreadable: int


class PatchDataset(Dataset[PatchSample]):
    """Cuts images into randomly cropped patches; indexed by (epoch, index).

    The crops are a function of (seed, epoch, index) alone, whichever rank or
    worker draws them. Flip and colour follow on the device.
    """

    def __init__(
        self,
        *,
        source: Source,
        seed: int,
        grid: int,
        cross_ratio: float,
        patch_size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
    ) -> None:
        """Keeps the settings; reads nothing yet.

        Args:
          source: of the images.
          seed: of the run.
          grid: patches a side of an image, >= 2 (published 2).
          cross_ratio: overlap of the regions, in [0, 0.5] (published 0.3).
          patch_size: side of a patch, pixels (published 112).
          scale: least and most area of a crop, share of its region (published 0.2, 1).
          ratio: least and most width / height of a crop (published 3/4, 4/3).

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
        self._scale = scale
        self._ratio = ratio

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> PatchSample:
        """Returns the patches of image `index` as drawn in `epoch`.

        An unreadable image is replaced by the next readable one, and counted.

        Raises:
          UserError: too many unreadable images in a row.
        """
        epoch, index = epoch_and_index
        image, unreadable = self._readable(index)
        random = generator_of(self._seed, epoch, index)
        _, height, width = image.shape
        patches = [
            crop_resize(
                image,
                random_resized_crop(random, region, self._scale, self._ratio),
                self._patch_size,
            )
            for region in patch_boxes(height, width, self._grid, self._cross_ratio)
        ]
        return PatchSample(torch.stack(patches), index, unreadable)

    def _readable(self, index: int) -> tuple[Tensor, int]:
        """Returns the first readable image from index on, and how many were skipped."""
        length = len(self._source)
        limit = min(UNREADABLE_IN_A_ROW, length)
        for skipped in range(limit):
            candidate = (index + skipped) % length
            try:
                return self._read(candidate), skipped
            except UnreadableImageError as error:
                name, reason = self._source.name(candidate), error
                logging.warning("unreadable image skipped: %s (%s)", name, reason)
        raise UserError(
            f"{limit} images in a row are unreadable, the last is {name} ({reason}): "
            "check that the data are images and were copied whole"
        )

    def _read(self, index: int) -> Tensor:
        image = self._source.read(index)
        _, height, width = image.shape
        if min(height, width) < self._grid:
            raise UnreadableImageError(
                f"{width}x{height} pixels are fewer than its {self._grid}x{self._grid} patches"
            )
        return image
