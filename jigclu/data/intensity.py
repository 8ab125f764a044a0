"""Intensities of more than 8 bits: integers of 12 to 32 bits, and floats.

A range of intensities becomes the 256 levels of a pixel, in equal steps. It is, in this order:

1. `Decoding.intensity_range`; values beyond it are clipped.
2. The range that the file declares, unless a value exceeds it: TIFF's MinSampleValue and
   MaxSampleValue, or BitsPerSample below 16; the bits of PNG's sBIT.
3. The range of the type: [0, 65535] for 16 bits, [0, 1] for floats. 32-bit and signed integers
   have none.

An image without a range, with values beyond it or with values that are not finite is unreadable,
and so is one that would become nearly black by rule 3, such as 12 bits stored in 16.
"""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LEVELS = 256
# An undeclared range of which only this share is used is the wrong one: 12 of 16 bits.
_LEAST_SHARE = 1 / 16
_BIND = "bind decoding.intensity_range to (black, white)"
# Tags of TIFF.
_BITS, _FORMAT = 258, 339
_MINIMA, _MAXIMA = (340, 280), (341, 281)
_SIGNED = 2


class IntensityError(Exception):
    """Intensities that no rule maps to pixels; the message says why and what to bind."""


class Range(NamedTuple):
    """Intensities of black and white; of integers, both are included."""

    black: float
    white: float


class Depth(NamedTuple):
    """What the header of an image says of its intensities.

    declared: range that the file declares; None if it declares none.
    usual: range of the type; None if it has none.
    is_color: whether there are 16 bits per channel of a color, of which Pillow only keeps the
      upper 8.
    """

    declared: Range | None
    usual: Range | None
    is_color: bool


def is_deep(image: Image.Image) -> bool:
    """Returns whether pixels are single numbers of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def read_depth(image: Image.Image, data: bytes) -> Depth:
    """Reads the header of an image.

    Args:
      image: just opened, since Pillow forgets the header when it loads the pixels.
      data: content of the file; empty for an image that is not of a file.
    """
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    raw_mode = arguments if isinstance(arguments, str) else str((arguments or ("",))[0])
    tags = getattr(image, "tag_v2", {})
    declared = _tiff_range(tags) if tags else _png_range(data)
    is_color = not is_deep(image) and ";16" in raw_mode
    return Depth(declared, _usual_range(image, tags), is_color)


def _usual_range(image: Image.Image, tags: dict[int, tuple[int, ...]]) -> Range | None:
    if image.mode == "F":
        return Range(0.0, 1.0)
    # Of an image of mode I, Pillow scales those of these formats to 16 bits.
    if image.mode.startswith("I;16") or image.format in ("PPM", "PNG", "JPEG2000"):
        return Range(0, 2**16 - 1)
    return None


def _tiff_range(tags: dict[int, tuple[int, ...]]) -> Range | None:
    def first(*names: int) -> float | None:
        values = [tags[name] for name in names if name in tags]
        return float(np.ravel(values[0])[0]) if values else None

    maximum, bits = first(*_MAXIMA), first(_BITS) or 1
    if maximum is not None:
        return Range(first(*_MINIMA) or 0, maximum)
    is_signed = first(_FORMAT) == _SIGNED
    return Range(0, 2**bits - 1) if bits < 16 and not is_signed else None


def _png_range(data: bytes) -> Range | None:
    """Returns the range of the significant bits that a PNG declares in its sBIT chunk."""
    position = 8
    while data.startswith(b"\x89PNG") and position + 9 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"sBIT":
            return Range(0, 2 ** data[position + 8] - 1)
        if kind == b"IDAT":
            break
        position += 12 + length
    return None


def choose_range(depth: Depth, given: Range | None, least: float, most: float) -> Range:
    """Returns the range that becomes black to white.

    Args:
      depth: of the image.
      given: range that the user states, if any.
      least: intensity in the image; NaN if one is not a number.
      most: likewise.

    Raises:
      IntensityError: no rule applies.
    """
    values = f"values from {least:g} to {most:g}"
    if not np.isfinite([least, most]).all():
        raise IntensityError("some intensities are not finite")
    if given is not None:
        return given
    if depth.declared and depth.declared.black <= least and most <= depth.declared.white:
        return depth.declared
    if depth.usual is None:
        raise IntensityError(f"32-bit or signed integers, {values}, have no usual range: {_BIND}")
    black, white = depth.usual
    if least < black or most > white:
        raise IntensityError(f"{values}, expected {black:g} to {white:g}: {_BIND}")
    if most < (white + (white > 1)) * _LEAST_SHARE:
        raise IntensityError(
            f"{values}, which would be nearly black in the range {black:g} to {white:g}: {_BIND}"
        )
    return depth.usual


def check_color(depth: Depth, given: Range | None, pixels: NDArray[np.uint8]) -> None:
    """Raises IntensityError for 16 bits per channel whose upper 8 are not enough.

    Args:
      depth: of the image.
      given: range that the user states, if any.
      pixels: uint8 of any shape, the upper 8 bits.
    """
    if not depth.is_color:
        return
    reason = "16 bits per color channel, of which only the upper 8 are read"
    if given is not None:
        raise IntensityError(f"{reason}, so that no intensity_range applies: convert it to 8 bits")
    if pixels.max() < _LEVELS * _LEAST_SHARE:
        raise IntensityError(f"{reason}, which leaves it nearly black: convert it to 8 bits")


def to_levels(values: NDArray[np.generic], intensities: Range) -> NDArray[np.uint8]:
    """Maps intensities, of any shape, to uint8 levels; clips those beyond the range."""
    # The last level ends one integer above white, so that 16 bits keep their upper byte.
    step = 1 if np.issubdtype(values.dtype, np.integer) else 0
    width = intensities.white - intensities.black + step
    levels = np.floor((values.astype(np.float64) - intensities.black) * (_LEVELS / width))
    return np.clip(levels, 0, _LEVELS - 1).astype(np.uint8)
