"""Image decoding to RGB pixels, and crops of one size."""

import contextlib
import functools
import io
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional

from jigclu.data import intensity
from jigclu.ops.jigsaw import Box
from jigclu.system.errors import check
from jigclu.system.input_files import file_size, open_regular

# torchvision's mode number for RGB.
_RGB = 3

# Maps the height and width of an upright image, pixels, to the factor (1, 2, 4 or 8) by which
# decoding may shrink both.
Reduction = Callable[[int, int], int]


# Pixels that are converted at a time, so that large images need little memory beside their own.
_STRIP_PIXELS = 2**20
_pillow_limit = threading.Lock()
# Markers of JPEG that start a frame, whose header contains the size.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Rules by which image files become pixels.

    Attributes:
      intensity_range: intensities of black and white in images of more than 8 bits, clipped
        beyond; None: as their files declare, see `jigclu.data.intensity`.
      most_pixels: larger images are unreadable. Decoding one takes up to 11 bytes per pixel.
      most_bytes: larger files are unreadable. They are read completely.
    """

    intensity_range: tuple[float, float] | None
    most_pixels: int
    most_bytes: int

    def __post_init__(self) -> None:
        given = self.intensity_range
        is_range = given is None or (given[0] < given[1] and all(map(math.isfinite, given)))
        check(is_range, "intensity_range", given, "(black, white), finite and ascending, or None")
        check(self.most_pixels >= 1, "most_pixels", self.most_pixels, "1 or more")
        check(self.most_bytes >= 1, "most_bytes", self.most_bytes, "1 or more")

    def check_bytes(self, size: int) -> None:
        """Raises UnreadableImageError for the size of a file above the limit."""
        if size > self.most_bytes:
            raise UnreadableImageError(
                f"{size:,} bytes are more than decoding.most_bytes = {self.most_bytes:,}: raise it "
                "if the memory suffices"
            )


# The limit of pixels is Pillow's own, above which it suspects a "decompression bomb".
USUAL_DECODING = Decoding(intensity_range=None, most_pixels=178_956_970, most_bytes=2**30)
# Formats that Pillow recognizes but cannot read, or only by starting other programs.
_UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class UnreadableImageError(Exception):
    """A file that is corrupt or not an image; the message says why."""


def at_full_size(height: int, width: int) -> int:
    """Decodes at full size."""
    del height, width
    return 1


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the names of the formats that Pillow itself reads."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _UNREADABLE_FORMATS)


def read_file(path: str, decoding: Decoding) -> bytes:
    """Returns the content of a file.

    Raises:
      UnreadableImageError: the file is missing, not a regular one, or too large.
    """
    try:
        with open_regular(path) as file:
            size = file_size(file)
            decoding.check_bytes(size)
            return file.read(size)
    except OSError as error:
        raise UnreadableImageError(str(error)) from error


def decode_image(
    data: bytes, reduction: Reduction = at_full_size, decoding: Decoding = USUAL_DECODING
) -> Tensor:
    """Decodes an image file and applies its EXIF orientation.

    Animations yield their first frame.

    Args:
      data: content of the file.
      reduction: factor by which JPEG may be shrunk while decoding, which takes a fraction of
        the time; other formats are decoded at full size.
      decoding: intensities and largest size.

    Returns:
      uint8 [3, height, width], RGB.

    Raises:
      UnreadableImageError: the data are empty, truncated, corrupt or not an image, the image is
        too large, or its intensities have no range.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    file = io.BytesIO(data)
    try:
        with open_image(file, decoding) as image:
            # Before Pillow looks for the orientation, for which it may load the pixels.
            depth = intensity.read_depth(image, data)
            factor = reduction(*upright_size(image))
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                if factor == 1:
                    pixels = _torchvision_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
                    if pixels is not None:
                        return pixels
                image.draft(None, (image.width // factor, image.height // factor))
            return to_pixels(image, depth, decoding)
    except (UnreadableImageError, intensity.IntensityError) as error:
        raise UnreadableImageError(str(error)) from error
    except Exception as error:  # PIL's plugins raise many kinds of errors on corrupt bytes.
        # PIL's messages contain the memory address of the file object.
        reason = str(error).replace(f" {file!r}", "")
        raise UnreadableImageError(f"{type(error).__name__}: {reason}") from error


def open_image(file: IO[bytes], decoding: Decoding) -> Image.Image:
    """Opens an image with `Decoding.most_pixels` as the limit in place of Pillow's own.

    Raises:
      UnreadableImageError: the image is too large.
      Exception: of many kinds, for data that are not an image.
    """
    # Pillow's limit is a global variable, which other code of this process may use.
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=readable_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    if image.width * image.height > decoding.most_pixels:
        image.close()
        raise UnreadableImageError(
            f"{image.width}x{image.height} pixels are more than decoding.most_pixels = "
            f"{decoding.most_pixels:,}: raise it if the memory suffices"
        )
    return image


def to_pixels(
    image: Image.Image,
    depth: intensity.Depth | None = None,
    decoding: Decoding = USUAL_DECODING,
) -> Tensor:
    """Turns an image of any mode into uint8 [3, height, width], RGB, with its EXIF orientation.

    Args:
      image: of PIL, with one or more channels.
      depth: as read before Pillow loaded the pixels.
      decoding: intensities.

    Raises:
      IntensityError: its intensities have no range.
    """
    depth = depth or intensity.read_depth(image, b"")
    given = decoding.intensity_range and intensity.Range(*decoding.intensity_range)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    intensities = None
    if intensity.is_deep(image):
        extremes = [(values.min(), values.max()) for values in map(np.asarray, _strips(image))]
        least, most = np.min(extremes), np.max(extremes)
        intensities = intensity.choose_range(depth, given, float(least), float(most))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for strip in _strips(image):
        pixels[top : top + strip.height] = np.asarray(_as_rgb(strip, intensities))
        top += strip.height
    intensity.check_color(depth, given, pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yields the rows of an image from top to bottom, a number of them at a time."""
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield image
        return
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


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
      UnreadableImageError: the data are not an image of this size, or it is too large.
    """
    sides = _jpeg_sides(data)
    if sides not in (None, (height, width)):
        raise UnreadableImageError(f"(height, width) are {sides}, expected {(height, width)}")
    is_usual = sides is not None and height * width <= USUAL_DECODING.most_pixels
    pixels = _torchvision_jpeg(data) if is_usual and reduction(height, width) == 1 else None
    return decode_image(data.numpy().tobytes(), reduction) if pixels is None else pixels


def _jpeg_sides(file: Tensor) -> tuple[int, int] | None:
    """Returns (height, width) in the header of a JPEG file, or None for other data.

    Decoders reserve memory for this size, which a file of a few bytes may claim.

    Args:
      file: uint8 [bytes].
    """
    data: Any = memoryview(file.numpy())  # type: ignore[arg-type]
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAMES:
            sides = data[position + 5 : position + 9]
            return int.from_bytes(sides[:2], "big"), int.from_bytes(sides[2:], "big")
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def read_size(path: str) -> tuple[int, int]:
    """Returns (height, width) of an image file in pixels, of which it only reads the header.

    Raises:
      UnreadableImageError: the file is missing, empty, corrupt or not an image.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=readable_formats()) as image:
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


def _as_rgb(image: Image.Image, intensities: intensity.Range | None) -> Image.Image:
    if intensities is not None:
        image = Image.fromarray(intensity.to_levels(np.asarray(image), intensities))
    if "transparency" in image.info:
        # Converting a palette with transparency directly to RGB makes PIL warn.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def has_one_color(image: Tensor) -> bool:
    """Returns whether all pixels of uint8 [3, height, width] are the same."""
    color = image[:, :1, :1]
    # A few pixels tell nearly every image that has more.
    return bool((image[:, ::16, ::16] == color).all()) and bool((image == color).all())


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
