"""Labeled images: resized for evaluation, and randomly cropped for training."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from absl import logging
from torch import Tensor
from torch.utils.data import Dataset

from jigclu.data.decode import UnreadableImageError, crop_resize, has_one_color
from jigclu.data.sources import Source
from jigclu.data.transform import EvalTransform
from jigclu.ops.crops import check_crop, random_resized_crop
from jigclu.ops.jigsaw import Box
from jigclu.system import seeds
from jigclu.system.errors import UserError, check


class LabeledImage(NamedTuple):
    """One image with its label.

    image: uint8 [3, size, size].
    label: class number, -1 if unlabeled or skipped.
    image_index: index in the source.
    has_one_color: whether all pixels of the image in the source are the same.
    """

    image: Tensor
    label: int
    image_index: int
    has_one_color: bool


class ImageDataset(Dataset[LabeledImage]):
    """Images for evaluation: the shorter side resized, then a center crop; no randomness."""

    def __init__(
        self, *, source: Source, transform: EvalTransform, skip_unreadable: bool = False
    ) -> None:
        """Reads nothing yet.

        Args:
          source: images.
          transform: resizes and crops them.
          skip_unreadable: whether an unreadable image becomes a black one without a label.
        """
        self.source = source
        self._transform = transform
        self._skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> LabeledImage:
        """Returns image `index`.

        Raises:
          UserError: the image is unreadable, and is not to be skipped.
        """
        read = self.source.read if self._skip_unreadable else partial(_read, self.source)
        try:
            image = read(index)
            crop = self._transform.crop_image(image)
        except UnreadableImageError:
            side = self._transform.crop
            return LabeledImage(torch.zeros(3, side, side, dtype=torch.uint8), -1, index, False)
        return LabeledImage(crop, _label(self.source, index), index, has_one_color(image))


class RandomCropDataset(Dataset[LabeledImage]):
    """Randomly cropped and flipped images for training with labels; indexed by (epoch, index).

    Crop and flip depend only on (seed, epoch, index), not on the rank or worker that draws them.
    """

    def __init__(
        self,
        *,
        source: Source,
        seed: int,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip_probability: float,
    ) -> None:
        """Reads nothing yet.

        Args:
          source: images.
          seed: of the run.
          size: side to which crops are resized, pixels (published 224).
          scale: least and most share of the image's area (published 0.08, 1).
          ratio: least and most width / height of a crop (published 3/4, 4/3).
          flip_probability: of a horizontal flip, in [0, 1] (published 0.5).
        """
        check_crop(scale, ratio)
        check(size >= 1, "train_size", size, "1 or more, in pixels")
        check(0 <= flip_probability <= 1, "flip_probability", flip_probability, "in [0, 1]")
        self.source = source
        self._seed = seed
        self._size = size
        self._scale = scale
        self._ratio = ratio
        self._flip_probability = flip_probability

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> LabeledImage:
        """Returns image `index` with the crop and flip of `epoch`.

        Raises:
          UserError: the image is unreadable. Skipping it would silently change the training set.
        """
        epoch, index = epoch_and_index
        image = _read(self.source, index)
        random = seeds.image_crops(self._seed, epoch, index)
        whole = Box(0, 0, *image.shape[1:])
        crop = random_resized_crop(random, whole, self._scale, self._ratio)
        shown = crop_resize(image, crop, self._size)
        if random.random() < self._flip_probability:
            shown = shown.flip(-1)
        return LabeledImage(shown, _label(self.source, index), index, has_one_color(image))


class EpochView(Dataset[LabeledImage]):
    """A RandomCropDataset in one fixed epoch, indexed by image."""

    def __init__(self, images: RandomCropDataset, epoch: int) -> None:
        self.source = images.source
        self._images = images
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabeledImage:
        """Returns image `index` with the crop and flip of the epoch."""
        return self._images[(self._epoch, index)]


def read_error(source: Source, index: int) -> str:
    """Returns why an image is unreadable; empty if it has become readable."""
    try:
        source.read(index)
    except UnreadableImageError as error:
        return str(error)
    return ""


def _read(source: Source, index: int) -> Tensor:
    try:
        return source.read(index)
    except UnreadableImageError as error:
        raise UserError(
            f"image {source.name(index)} is unreadable ({error}): "
            "no image may be missing here; fix or remove it"
        ) from error


def warn_of_one_color(source: Source, indices: Sequence[int]) -> None:
    """Logs the number of images whose pixels are all the same, and the first of them."""
    if indices:
        first, count, images = source.name(indices[0]), len(indices), len(source)
        logging.warning("%d of %d images have only one color, such as %s", count, images, first)


def _label(source: Source, index: int) -> int:
    return -1 if source.labels is None else source.labels[index]
