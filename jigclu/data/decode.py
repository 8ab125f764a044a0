"""Bytes of an image file to RGB pixels, and pixels to patches of one size."""

import io

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from jigclu.jigsaw import Box


class UnreadableImageError(Exception):
    """A file that is not an image, or a corrupt one. The message says why."""


def decode_image(data: bytes) -> Tensor:
    """Decodes a whole image file, upright by its EXIF orientation.

    Of an animation the first frame is taken; 16-bit greys keep their upper byte.

    Args:
      data: the content of the file.

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
            return transforms.pil_to_tensor(_as_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # PIL's plugins raise all kinds of errors on corrupt bytes.
        # PIL names the bytes by their address in memory.
        reason = str(error).replace(f" {file!r}", "")
        raise UnreadableImageError(f"{type(error).__name__}: {reason}") from error


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
    crop = image[:, top : top + height, left : left + width]
    return transforms.resize(crop, [size, size], antialias=True)
