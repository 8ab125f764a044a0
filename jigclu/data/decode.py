"""Bytes of an image file to RGB pixels, and pixels to patches of one size."""

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

# torchvision's number for red, green and blue.
_RGB = 3

# Of the height and width of an upright image, pixels: by how much decoding may shrink both.
Reduction = Callable[[int, int], int]


class UnreadableImageError(Exception):
    """A file that is not an image, or a corrupt one. The message says why."""


def at_full_size(height: int, width: int) -> int:
    """The reduction that is none."""
    del height, width
    return 1


def decode_image(data: bytes, reduction: Reduction = at_full_size) -> Tensor:
    """Decodes a whole image file, upright by its EXIF orientation.

    Of an animation the first frame is taken; 16-bit grays keep their upper byte.

    Args:
      data: the content of the file.
      reduction: JPEG of 2, 4 or 8 times less a side is decoded from so much fewer
        coefficients, in a fraction of the time; other formats come at full size.

    Returns:
      uint8 [3, height, width], RGB.

    Raises:
      UnreadableImageError: empty, cut off, corrupt or not an image.
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
            return transforms.pil_to_tensor(_as_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # PIL's plugins raise all kinds of errors on corrupt bytes.
        # PIL names the bytes by their address in memory.
        reason = str(error).replace(f" {file!r}", "")
        raise UnreadableImageError(f"{type(error).__name__}: {reason}") from error


def decode_upright_jpeg(data: Tensor, height: int, width: int, reduction: Reduction) -> Tensor:
    """Decodes a JPEG file of known size without orientation: `decode_image`, a little faster.

    Args:
      data: uint8 [bytes], the content of the file.
      height, width: of the image, pixels.
      reduction: as of `decode_image`.

    Returns:
      uint8 [3, height, width], RGB.

    Raises:
      UnreadableImageError: these bytes are not an image.
    """
    pixels = _torchvision_jpeg(data) if reduction(height, width) == 1 else None
    return decode_image(data.numpy().tobytes(), reduction) if pixels is None else pixels


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width, pixels, as shown by EXIF; of a JPEG reads the header alone."""
    quarter_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return image.size if quarter_turned else image.size[::-1]


def _torchvision_jpeg(data: Tensor) -> Tensor | None:
    """Decodes to Pillow's pixels in about three quarters of the time; None if Pillow must decode.

    Returns None for corrupt files too: Pillow's message says what is wrong with them.

    Calls the operator behind `torchvision.io.decode_jpeg`. That function warns since torchvision
    0.29 that its decoders are deprecated in favor of torchcodec, which was measured to be no
    faster (docs/performance.md). Suppressing the warning around each call would not do: every
    change of the filters makes Python show the user's own warnings again.
    """
    # The operator is missing if torchvision was built without libjpeg.
    with contextlib.suppress(AttributeError, RuntimeError):
        pixels: Tensor = torch.ops.image.decode_jpeg(data, _RGB, True)
        return pixels
    return None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL would clip 16 bits to 255, which leaves a white picture.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        # PIL warns of a palette whose transparency it drops, for each such image.
        image = image.convert("RGBA")
    return image.convert("RGB")


def crop_resize(image: Tensor, box: Box, size: int) -> Tensor:
    """Cuts a box out and resizes it: bilinear with antialiasing, rounded to uint8.

    Args:
      image: uint8 [3, height, width].
      box: inside the image, pixels.
      size: side of the result, pixels.

    Returns:
      uint8 [3, size, size].
    """
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width]
    return functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
