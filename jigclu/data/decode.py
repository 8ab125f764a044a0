"""Image decoding to RGB pixels, and crops of one size."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from jigclu.ops.jigsaw import Box

# torchvision's mode number for RGB.
_RGB = 3

# Maps the height and width of an upright image, pixels, to the factor (1, 2, 4 or 8) by which
# decoding may shrink both.
Reduction = Callable[[int, int], int]


class UnreadableImageError(Exception):
    """A file that is corrupt or not an image; the message says why."""


def at_full_size(height: int, width: int) -> int:
    """Decodes at full size."""
    del height, width
    return 1


def decode_image(data: bytes, reduction: Reduction = at_full_size) -> Tensor:
    """Decodes an image file and applies its EXIF orientation.

    Animations yield their first frame; 16-bit gray images keep the upper byte.

    Args:
      data: content of the file.
      reduction: factor by which JPEG may be shrunk while decoding, which takes a fraction of
        the time; other formats are decoded at full size.

    Returns:
      uint8 [3, height, width], RGB.

    Raises:
      UnreadableImageError: the data are empty, truncated, corrupt or not an image.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    file = io.BytesIO(data)
    try:
        with Image.open(file) as image:
            factor = reduction(*upright_size(image))
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                if factor == 1:
                    pixels = _torchvision_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
                    if pixels is not None:
                        return pixels
                image.draft(None, (image.width // factor, image.height // factor))
            return to_pixels(image)
    except Exception as error:  # PIL's plugins raise many kinds of errors on corrupt bytes.
        # PIL's messages contain the memory address of the file object.
        reason = str(error).replace(f" {file!r}", "")
        raise UnreadableImageError(f"{type(error).__name__}: {reason}") from error


def to_pixels(image: Image.Image) -> Tensor:
    """Turns an image of any mode into uint8 [3, height, width], RGB, with its EXIF orientation."""
    return transforms.pil_to_tensor(_as_rgb(ImageOps.exif_transpose(image)))


def decode_upright_jpeg(data: Tensor, height: int, width: int, reduction: Reduction) -> Tensor:
    """Decodes a JPEG file of known size and without EXIF orientation.

    Equals `decode_image` but skips reading the header with PIL.

    Args:
      data: uint8 [bytes], content of the file.
      height, width: of the image, pixels.
      reduction: as in `decode_image`.

    Returns:
      uint8 [3, height, width], RGB.

    Raises:
      UnreadableImageError: the data are not an image.
    """
    pixels = _torchvision_jpeg(data) if reduction(height, width) == 1 else None
    return decode_image(data.numpy().tobytes(), reduction) if pixels is None else pixels


def read_size(path: str) -> tuple[int, int]:
    """Returns (height, width) of an image file in pixels, of which it only reads the header.

    Raises:
      UnreadableImageError: the file is missing, empty, corrupt or not an image.
    """
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except Exception as error:  # PIL's plugins raise many kinds of errors on corrupt bytes.
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) in pixels after EXIF rotation; of a JPEG only reads the header."""
    quarter_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return image.size if quarter_turned else image.size[::-1]


def _torchvision_jpeg(data: Tensor) -> Tensor | None:
    """Decodes to the same pixels as Pillow in about three quarters of the time.

    Returns None if Pillow must decode: if the operator is missing, and for corrupt files, of
    which Pillow's messages say what is wrong.

    Calls the operator behind `torchvision.io.decode_jpeg`. Since torchvision 0.29 that function
    warns that its decoders are deprecated in favor of torchcodec, which measured no faster
    (docs/performance.md). Suppressing the warning around each call is no alternative: every
    change of the filters makes Python show the user's own warnings again.
    """
    # The operator is missing if torchvision was built without libjpeg.
    with contextlib.suppress(AttributeError, RuntimeError):
        pixels: Tensor = torch.ops.image.decode_jpeg(data, _RGB, True)
        return pixels
    return None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL would clip 16-bit values to 255, which leaves a white image.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        # Converting a palette with transparency directly to RGB makes PIL warn.
        image = image.convert("RGBA")
    return image.convert("RGB")


def crop_resize(image: Tensor, box: Box, size: int) -> Tensor:
    """Crops an image and resizes the crop by antialiased bilinear interpolation.

    Args:
      image: uint8 [3, height, width].
      box: crop inside the image, pixels.
      size: side of the result, pixels.

    Returns:
      uint8 [3, size, size].
    """
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    return functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
