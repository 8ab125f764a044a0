"""Images with masks for semantic segmentation: sources, checks, training crops.

A mask is an image with one channel, whose values are class numbers. Sources return it as uint8
[height, width] with `IGNORED` for pixels that have no class.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models.segmentation import FCN_ResNet50_Weights
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.decode import (
    USUAL_DECODING,
    Decoding,
    UnreadableImageError,
    has_one_color,
    open_image,
)
from jigclu.data.image_files import ImageFiles, list_images, require_folder
from jigclu.data.images import warn_of_one_color
from jigclu.data.lists import read_list
from jigclu.data.sources import Source, digest
from jigclu.ops.crops import ScaledCrop, scaled_crop
from jigclu.ops.segmentation import IGNORED
from jigclu.system import progress, seeds
from jigclu.system.cores import available_cores
from jigclu.system.errors import UserError, check, naming
from jigclu.system.input_files import open_regular

# Modes of Pillow in which a pixel is one number.
_MASK_MODES = ("1", "L", "P", "I", "I;16")


class MaskedImage(NamedTuple):
    """One image with its mask.

    image: uint8 [3, height, width], RGB.
    mask: uint8 [height, width], class numbers or `IGNORED`; may have another size than the image
      if that was resized for evaluation.
    """

    image: Tensor
    mask: Tensor


class SegmentationSource(Source, Protocol):
    """A source of images with masks; as a `Source` its images are unlabeled."""

    @property
    def pixel_classes(self) -> list[str]:
        """Names of the classes of pixels."""

    def mask(self, index: int) -> Tensor:
        """Returns uint8 [height, width], class numbers or `IGNORED`.

        Raises:
          UserError: the mask is unreadable, has several channels, or a value beyond the classes.
        """


class MaskedFiles(ImageFiles):
    """A source of image files and mask files below one folder."""

    def __init__(
        self,
        root: str,
        files: list[str],
        masks: list[str],
        pixel_classes: Sequence[str],
        ignore_value: int | None,
        decoding: Decoding = USUAL_DECODING,
    ) -> None:
        """Keeps the names and their order; reads nothing yet.

        Args:
          root: folder to which all names are relative.
          files: names of the images.
          masks: name of each image's mask.
          pixel_classes: names of the classes, of which mask values are the indices.
          ignore_value: mask value of pixels without a class; None if all have one.
        """
        super().__init__(root, files, [], None, decoding)
        self.pixel_classes = list(pixel_classes)
        self._masks = np.array([os.fsencode(mask) for mask in masks])
        self._ignore_value = ignore_value

    def mask(self, index: int) -> Tensor:
        """See `SegmentationSource`."""
        path = os.path.join(self._root, os.fsdecode(bytes(self._masks[index])))
        values = _read_mask(path, self._decoding)
        ignored = values == self._ignore_value
        classes = len(self.pixel_classes)
        beyond = values[~ignored & ~((values >= 0) & (values < classes))]
        if len(beyond):
            raise UserError(
                f"mask {path} has the value {beyond[0]}; expected class numbers from 0 to "
                f"{classes - 1}, and ignore_value is {self._ignore_value}: bind all classes, or "
                "ignore_value to the value of pixels without a class"
            )
        return torch.from_numpy(np.where(ignored, IGNORED, values).astype(np.uint8))

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        masks = self._masks.shape, self._masks.tobytes()
        return digest(super().fingerprint(deep), masks, self.pixel_classes, self._ignore_value)


def _read_mask(path: str, decoding: Decoding) -> np.ndarray:
    """Returns the values of a mask file, int64 [height, width]."""
    try:
        with open_regular(path) as file, open_image(file, decoding) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # PIL's plugins raise many kinds of errors on corrupt bytes.
        raise UserError(f"mask {path} is unreadable ({error}): fix or remove the file") from error
    if mode not in _MASK_MODES:
        raise UserError(
            f"mask {path} is an image of mode {mode}; expected one channel of class numbers, gray "
            "or with a palette: convert its colors to class numbers"
        )
    return values.astype(np.int64)


class VocSegmentation(MaskedFiles):
    """The segmentation part of VOC 2012, or data in its layout and with its 21 classes.

    Reads the images of a list, ImageSets/Segmentation/<split>.txt, from JPEGImages/ and
    SegmentationClass/. Class 0 is the background.
    """

    def __init__(self, root: str, split: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Lists the files.

        Args:
          root: the folder VOC2012 itself.
          split: name of the list: train, val or trainval.
          decoding: intensities and largest size.

        Raises:
          UserError: a folder, the list or a listed file is missing, or an image is listed twice.
        """
        with naming("root"):
            root = require_folder(root)
            lists = require_folder(os.path.join(root, "ImageSets", "Segmentation"))
        path = os.path.join(lists, f"{split}.txt")
        with naming("split"):
            names = read_list(path)
        _check_no_duplicates(names, path)
        files = [os.path.join("JPEGImages", f"{name}.jpg") for name in names]
        masks = [os.path.join("SegmentationClass", f"{name}.png") for name in names]
        for name in (*files, *masks):
            if not os.path.isfile(os.path.join(root, name)):
                raise UserError(f"{os.path.join(root, name)} does not exist, but {path} lists it")
        classes = FCN_ResNet50_Weights.DEFAULT.meta["categories"]
        names = ["background", *classes[1:]]
        super().__init__(root, files, masks, names, IGNORED, decoding)


class SegmentationFolders(MaskedFiles):
    """A source of a folder of images and a folder of masks with the same names.

    The mask of images/a/b.jpg is masks/a/b.png. Images are sorted by path; hidden ones are
    ignored.
    """

    def __init__(
        self,
        root: str,
        images: str,
        masks: str,
        classes: Sequence[str] | int,
        ignore_value: int | None,
        decoding: Decoding = USUAL_DECODING,
    ) -> None:
        """Lists the files.

        Args:
          root: folder that contains both.
          images: folder of the images, relative to root.
          masks: folder of the masks, PNG files, relative to root.
          classes: names of the classes, of which mask values are the indices; or their number.
          ignore_value: mask value of pixels without a class, in [0, 255]; None if all have one.
          decoding: intensities and largest size.

        Raises:
          UserError: a value is out of range, a folder or mask is missing, or two images belong to
            one mask.
        """
        names = [str(n) for n in range(classes)] if isinstance(classes, int) else list(classes)
        # IGNORED is no class number.
        check(2 <= len(names) <= IGNORED, "classes", classes, f"2 to {IGNORED} classes")
        _check_no_duplicates(names, "classes")
        in_range = ignore_value is None or 0 <= ignore_value <= 255
        check(in_range, "ignore_value", ignore_value, "in [0, 255], or None")
        with naming("root"):
            root = require_folder(root)
        with naming("images"):
            files, notes = list_images(require_folder(os.path.join(root, images)))
        with naming("masks"):
            require_folder(os.path.join(root, masks))
        stems = [os.path.splitext(file)[0] for file in files]
        _check_no_duplicates(stems, os.path.join(root, images))
        mask_files = [os.path.join(masks, f"{stem}.png") for stem in stems]
        missing = [m for m in mask_files if not os.path.isfile(os.path.join(root, m))]
        if missing:
            raise UserError(
                f"masks: {len(missing)} of the {len(files)} images have no mask, the first missing "
                f"one is {os.path.join(root, missing[0])}: expected a PNG with the image's name"
            )
        files = [os.path.join(images, file) for file in files]
        super().__init__(root, files, mask_files, names, ignore_value, decoding)
        self.notes = notes


def _check_no_duplicates(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where} contains {twice[0]} twice: every name must occur once")


def read_pair(source: SegmentationSource, index: int) -> MaskedImage:
    """Reads an image with its mask.

    Raises:
      UserError: one of them is unreadable, their sizes differ, or the mask is invalid.
    """
    try:
        image = source.read(index)
    except UnreadableImageError as error:
        raise UserError(
            f"image {source.name(index)} is unreadable ({error}): "
            "labeled data must be complete; fix or remove the image"
        ) from error
    mask = source.mask(index)
    if image.shape[1:] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[1:], mask.shape
        raise UserError(
            f"image {source.name(index)} has {width}x{height} pixels and its mask "
            f"{mask_width}x{mask_height}: they must have the same size"
        )
    return MaskedImage(image, mask)


def check_masks(source: SegmentationSource, name: str) -> None:
    """Reads all images and masks of a source, so that none of them stops a run later.

    Images of one color are reported in the log.

    Args:
      source: images with masks.
      name: of the setting, for messages.

    Raises:
      UserError: a file is unreadable or invalid, or no pixel has a class.
    """
    with ThreadPoolExecutor(available_cores()) as pool, naming(name):
        pairs = pool.map(partial(_check_pair, source), range(len(source)))
        what = f"checking the images and masks of {name}"
        have_classes, have_one_color = zip(*progress.track(pairs, what, len(source)), strict=True)
        if not any(have_classes):
            raise UserError("every pixel of every mask is ignored: expected pixels with a class")
    warn_of_one_color(source, [index for index, value in enumerate(have_one_color) if value])


def _check_pair(source: SegmentationSource, index: int) -> tuple[bool, bool]:
    """Returns whether a mask has pixels with a class, and whether its image has one color."""
    image, mask = read_pair(source, index)
    return bool((mask != IGNORED).any()), has_one_color(image)


class MaskedDataset(Dataset[MaskedImage]):
    """Images with masks for evaluation; only the image is resized, without randomness."""

    def __init__(self, *, source: SegmentationSource, resize: int | None) -> None:
        """Reads nothing yet.

        Args:
          source: images with masks.
          resize: pixels of the image's shorter side; None keeps its size.
        """
        self._source = source
        self._resize = resize

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> MaskedImage:
        """Returns image `index` with its mask at full size; raises as `read_pair`."""
        image, mask = read_pair(self._source, index)
        if self._resize is not None:
            image = transforms.resize(image, [self._resize], antialias=True)
        return MaskedImage(image, mask)


class MaskedCrops(Dataset[MaskedImage]):
    """Scaled, cropped and flipped images with masks for training; indexed by (epoch, index).

    The draws depend only on (seed, epoch, index), not on the rank or worker that makes them.
    """

    def __init__(
        self,
        *,
        source: SegmentationSource,
        seed: int,
        size: int,
        scale: tuple[float, float],
        flip_probability: float,
    ) -> None:
        """Reads nothing yet.

        Args:
          source: images with masks.
          seed: of the run.
          size: side of the crops, pixels. Smaller images are padded with black, ignored pixels.
          scale: least and most factor by which an image is resized before it is cropped.
          flip_probability: of a horizontal flip, in [0, 1].
        """
        check(size >= 1, "train_size", size, "1 or more, in pixels")
        in_range = 0 < scale[0] <= scale[1] < float("inf")
        check(in_range, "scale", scale, "(least, most), finite and above 0")
        check(0 <= flip_probability <= 1, "flip_probability", flip_probability, "in [0, 1]")
        self._source = source
        self._seed = seed
        self._size = size
        self._scale = scale
        self._flip_probability = flip_probability

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> MaskedImage:
        """Returns image `index` as drawn for `epoch`, [.., size, size]; raises as `read_pair`."""
        epoch, index = epoch_and_index
        image, mask = read_pair(self._source, index)
        random = seeds.image_crops(self._seed, epoch, index)
        height, width = mask.shape
        crop = scaled_crop(random, height, width, self._scale, self._size)
        flips = random.random() < self._flip_probability
        return MaskedImage(
            self._apply(tv_tensors.Image(image), crop, flips, padding=0),
            self._apply(tv_tensors.Mask(mask), crop, flips, padding=IGNORED),
        )

    def _apply(self, values: Tensor, crop: ScaledCrop, flips: bool, padding: int) -> Tensor:
        """Resizes, pads, crops and flips an image, or a mask by its nearest pixels."""
        values = transforms.resize(values, [crop.height, crop.width], antialias=True)
        missing = [max(0, self._size - side) for side in (crop.width, crop.height)]
        values = transforms.pad(values, [0, 0, *missing], fill=padding)
        values = transforms.crop(values, crop.top, crop.left, self._size, self._size)
        return (transforms.horizontal_flip(values) if flips else values).as_subclass(Tensor)
