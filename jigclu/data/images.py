"""Data sets of whole images with labels: as they are scored, and cropped for training."""

from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from jigclu.data.decode import UnreadableImageError, crop_resize
from jigclu.data.sources import Source
from jigclu.data.transform import EvalTransform
from jigclu.ops.crops import check_crop, random_resized_crop
from jigclu.ops.jigsaw import Box
from jigclu.system import seeds
from jigclu.system.errors import UserError, check


class LabeledImage(NamedTuple):
    """One image, or a batch of them with a leading dimension.

    image: uint8 [3, crop, crop].
    label: class number, or -1 when unlabeled.
    image_index: in the source.
    """

    image: Tensor
    label: int
    image_index: int


class ImageDataset(Dataset[LabeledImage]):
    """Whole images for evaluation: shorter side resized, center cropped; no randomness."""

    def __init__(self, *, source: Source, transform: EvalTransform) -> None:
        """Keeps the settings; reads nothing yet."""
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> LabeledImage:
        """Returns image `index`.

        Raises:
          UserError: the image is unreadable: a score must not skip images in silence.
        """
        image = self._transform.crop_image(_read(self._source, index))
        return LabeledImage(image, _label(self._source, index), index)


class RandomCropDataset(Dataset[LabeledImage]):
    """Images for training with labels, randomly cropped and flipped; indexed by (epoch, index).

    Crop and flip are a function of (seed, epoch, index) alone, whichever rank or
    worker draws them.
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
        """Keeps the settings; reads nothing yet.

        Args:
          source: of the images.
          seed: of the run.
          size: side of the crop after resizing, pixels (published 224).
          scale: least and most area of a crop, share of the image (published 0.08, 1).
          ratio: least and most width / height of a crop (published 3/4, 4/3).
          flip_probability: of left to right, in [0, 1] (published 0.5).

        Raises:
          UserError: a value out of its range.
        """
        check_crop(scale, ratio)
        check(size >= 1, "train_size", size, "1 or more, in pixels")
        check(0 <= flip_probability <= 1, "flip_probability", flip_probability, "in [0, 1]")
        self._source = source
        self._seed = seed
        self._size = size
        self._scale = scale
        self._ratio = ratio
        self._flip_probability = flip_probability

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> LabeledImage:
        """Returns image `index` as drawn in `epoch`.

        Raises:
          UserError: the image is unreadable: what is learned must not depend on it in silence.
        """
        epoch, index = epoch_and_index
        image = _read(self._source, index)
        random = seeds.image_crops(self._seed, epoch, index)
        whole = Box(0, 0, *image.shape[1:])
        crop = random_resized_crop(random, whole, self._scale, self._ratio)
        image = crop_resize(image, crop, self._size)
        if random.random() < self._flip_probability:
            image = image.flip(-1)
        return LabeledImage(image, _label(self._source, index), index)


class EpochView(Dataset[LabeledImage]):
    """What a RandomCropDataset shows in one epoch, indexed by image."""

    def __init__(self, images: RandomCropDataset, epoch: int) -> None:
        self._images = images
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> LabeledImage:
        """Returns image `index` as drawn in the epoch."""
        return self._images[(self._epoch, index)]


def _read(source: Source, index: int) -> Tensor:
    try:
        return source.read(index)
    except UnreadableImageError as error:
        raise UserError(
            f"image {source.name(index)} is unreadable ({error}): "
            "evaluation needs every image; mend or remove it"
        ) from error


def _label(source: Source, index: int) -> int:
    return -1 if source.labels is None else source.labels[index]
