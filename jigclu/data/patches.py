"""Data sets of patches (pre-training) and of whole images (evaluation)."""

from typing import NamedTuple

import numpy as np
import torch
from absl import logging
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from jigclu.crops import check_crop, random_resized_crop
from jigclu.data.decode import UnreadableImageError, crop_resize
from jigclu.data.sources import Source
from jigclu.errors import UserError
from jigclu.jigsaw import check_grid, mix_seed, patch_boxes

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
        random = np.random.Generator(
            np.random.Philox(key=np.array([mix_seed(self._seed, epoch), index], dtype=np.uint64))
        )
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


class LabelledImage(NamedTuple):
    """One image, or a batch of them with a leading dimension.

    image: uint8 [3, crop, crop].
    label: class number, or -1 when unlabelled.
    image_index: in the source.
    """

    image: Tensor
    label: int
    image_index: int


class ImageDataset(Dataset[LabelledImage]):
    """Whole images for evaluation: shorter side resized, centre cropped; no randomness."""

    def __init__(self, *, source: Source, resize: int, crop: int) -> None:
        """Keeps the settings; reads nothing yet.

        Args:
          source: of the images.
          resize: length of the shorter side, pixels (published 256).
          crop: side of the central crop, pixels (published 224).

        Raises:
          UserError: crop is not within [1, resize].
        """
        if not 1 <= crop <= resize:
            raise UserError(
                f"crop is {crop}; it must lie in [1, {resize}]: "
                f"the shorter side is resized to {resize} pixels first"
            )
        self._source = source
        self._resize = resize
        self._crop = crop

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> LabelledImage:
        """Returns image `index`.

        Raises:
          UserError: the image is unreadable: a score must not skip images in silence.
        """
        try:
            image = self._source.read(index)
        except UnreadableImageError as error:
            raise UserError(
                f"image {self._source.name(index)} is unreadable ({error}): "
                "evaluation needs every image; mend or remove it"
            ) from error
        image = transforms.resize(image, [self._resize], antialias=True)
        image = transforms.center_crop(image, [self._crop, self._crop])
        label = -1 if self._source.labels is None else self._source.labels[index]
        return LabelledImage(image, label, index)
