"""Checks of masks in COCO's layout: polygons and run-length encodings."""

import math
from collections.abc import Sequence


def describe_problem(mask: object, size: Sequence[float], *, is_known: bool) -> str | None:
    """Says what is wrong with a mask, in words that follow its name; None if nothing is.

    Args:
      mask: polygons, or a run-length encoding.
      size: height and width of the image, pixels.
      is_known: accepts polygons that detectron2 removes, unless it removes the whole object.
    """
    if isinstance(mask, dict):
        return _describe_encoding(mask, size)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return "is not a list of polygons [[x, y, x, y, ...], ...]"
    values = [value for polygon in mask for value in polygon]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return "has a coordinate that is not a finite number"
    if any(abs(value) > 2 * max(size) for value in values):
        # pycocotools needs memory for every pixel along an edge.
        return "has a coordinate far outside its image"
    short = [len(polygon) < 6 or len(polygon) % 2 == 1 for polygon in mask]
    if all(short) if is_known else any(short):
        return "has a polygon without three points [x, y, x, y, x, y]"
    return None


def area(polygon: Sequence[float]) -> float:
    """Returns the signed area of a polygon [x, y, x, y, ...] in square pixels."""
    xs, ys = polygon[::2], polygon[1::2]
    return sum(xs[place - 1] * y - xs[place] * ys[place - 1] for place, y in enumerate(ys)) / 2


def _describe_encoding(mask: dict[str, object], size: Sequence[float]) -> str | None:
    counts = mask.get("counts")
    if not isinstance(counts, (str, list)):
        return "is a run-length encoding without counts"
    if mask.get("size") != list(size):
        return f"is a run-length encoding without the size {list(size)} of its image"
    lengths = _decompress(counts) if isinstance(counts, str) else counts
    if lengths is None or not all(isinstance(length, int) and length >= 0 for length in lengths):
        return "is a run-length encoding with invalid counts"
    if sum(lengths) != math.prod(size):
        return f"is a run-length encoding whose counts do not add up to the size {list(size)}"
    return None


def _decompress(text: str) -> list[int] | None:
    """Returns the run lengths of COCO's compressed text; None if it is not such a text.

    Each character holds 5 bits of a number, the lowest ones first, and a bit that says whether
    more follow; from the fourth number on, differences to the last but one are stored.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    return None if shift else lengths
