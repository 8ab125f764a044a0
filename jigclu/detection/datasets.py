"""Shared checks of data sets in COCO's and VOC's layout.

The checks do not need detectron2, which reads the same files again for training.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from jigclu.data.decode import upright_size
from jigclu.system.errors import UserError

# Pixels by which a box may exceed its image, due to rounding or to counting from 0 or 1.
_TOLERANCE = 1.0


class Summary(NamedTuple):
    """Size of a data set, and its class names in the order of their numbers."""

    images: int
    boxes: int
    classes: tuple[str, ...]


class Box(NamedTuple):
    """Edges in pixels, counted from 0."""

    left: float
    top: float
    right: float
    bottom: float


def check_same_classes(summaries: dict[str, Summary]) -> None:
    """Raises UserError unless all data sets have the same classes in the same order."""
    (first, expected), *others = summaries.items()
    for name, summary in others:
        if summary.classes != expected.classes:
            differing = sorted(set(summary.classes) ^ set(expected.classes))
            difference = ", ".join(differing) if differing else "in another order"
            raise UserError(
                f"data sets {first} and {name} have different classes ({difference}): "
                "training and evaluation data must agree; fix their categories"
            )


def read_text(name: str, path: Path) -> str:
    """Returns the text of a file of a data set; raises UserError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(
            f"data set {name}: {path} cannot be read ({reason}): use another path, or put the "
            "data below ./datasets or $DETECTRON2_DATASETS"
        ) from error


def is_inside(box: Box, width: int, height: int) -> bool:
    """Returns whether a box lies in its image, up to rounding."""
    return (
        all(math.isfinite(edge) for edge in box)
        and -_TOLERANCE <= box.left <= box.right <= width + _TOLERANCE
        and -_TOLERANCE <= box.top <= box.bottom <= height + _TOLERANCE
    )


def describe_box(box: Iterable[float], width: int, height: int, file: str) -> str:
    """Returns a box as annotated, with its file and the size of its image, for messages."""
    edges = ", ".join(f"{edge:g}" for edge in box)
    return f"box [{edges}] of {file}, {width}x{height} pixels,"


def reject_empty(name: str, path: Path, images: int, classes: int, boxes: int) -> None:
    """Raises UserError for a data set without images, classes or boxes."""
    if not images or not classes or not boxes:
        raise UserError(
            f"data set {name}: {path} has {images} images, {classes} classes and {boxes} boxes; "
            "expected at least one of each"
        )


def reject_missing(name: str, folder: Path, files: Sequence[str]) -> None:
    """Raises UserError if files are not in folder."""
    reject(name, [file for file in files if not (folder / file).is_file()], f"is not in {folder}")


def reject_images(name: str, folder: Path, sizes: Mapping[str, tuple[float, float]]) -> None:
    """Rejects images that are missing, unreadable, or not as large as annotated."""
    reject_missing(name, folder, list(sizes))
    unreadable, other = [], []
    for file, annotated in sizes.items():
        try:
            with Image.open(folder / file) as image:
                size = upright_size(image)[::-1]
        except Exception:  # PIL's plugins raise many kinds of errors for corrupt files.
            unreadable.append(file)
            continue
        if size != annotated:
            sizes_text = ", annotated as ".join(
                f"{width:g}x{height:g}" for width, height in (size, annotated)
            )
            other.append(f"{file} ({sizes_text} pixels)")
    reject(name, unreadable, f"in {folder} is not an image")
    reject(name, other, "has another size")


def reject(name: str, found: Sequence[str], reason: str) -> None:
    """Raises UserError if anything was found; names the first and counts the others."""
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"data set {name}: {found[0]} {reason}{more}: fix the data set, or leave it out"
        )


def reject_repeated(name: str, values: Sequence[str], reason: str) -> None:
    """Raises UserError if a value occurs more than once."""
    counts = Counter(values)
    reject(name, [value for value, count in counts.items() if count > 1], reason)
