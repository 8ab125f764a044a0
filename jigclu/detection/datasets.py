"""Shared checks of data sets in COCO's and VOC's layout.

The checks do not need detectron2, which reads the same files again for training.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from jigclu.data.decode import readable_formats, upright_size
from jigclu.system import progress
from jigclu.system.cores import available_cores
from jigclu.system.errors import UserError
from jigclu.system.input_files import open_regular

# Pixels by which a box may exceed its image, due to rounding or to counting from 0 or 1.
_TOLERANCE = 1.0
# Of the sides of an image; the published configurations reduce the longer one to 1,333 pixels.
_MAX_RATIO = 1000


class Use(NamedTuple):
    """What a run does with a data set.

    mask_format: "polygon" or "bitmask" if the detector predicts masks, else None.
    decodes_images: whether the check decodes whole images instead of only the headers of JPEGs.
    """

    is_trained: bool
    is_evaluated: bool
    mask_format: str | None = None
    decodes_images: bool = True


class Summary(NamedTuple):
    """Size of a data set, its class names in the order of their numbers, and what it lacks.

    empty_images: images without boxes, or with only crowds.
    crowds: boxes around crowds.
    flat_boxes: boxes without area.
    """

    images: int
    boxes: int
    classes: tuple[str, ...]
    empty_images: int = 0
    crowds: int = 0
    flat_boxes: int = 0

    def describe(self, *, is_trained: bool, keeps_empty_images: bool) -> str:
        """Returns the size in words, with all that detectron2 leaves out of training."""
        text = f"{self.images:,} images, {self.boxes:,} boxes"
        dropped = [
            f"{title} ({count:,})"
            for count, title in (
                (0 if keeps_empty_images else self.empty_images, "images without boxes"),
                (self.crowds, "crowds"),
                (self.flat_boxes, "boxes without area"),
            )
            if count
        ]
        if not is_trained or not dropped:
            return text
        return f"{text}; training leaves out {', '.join(dropped)}"


class Box(NamedTuple):
    """Edges in pixels, counted from 0."""

    left: float
    top: float
    right: float
    bottom: float

    def is_finite(self) -> bool:
        """Returns whether no edge is infinite or NaN."""
        return all(math.isfinite(edge) for edge in self)

    def is_inverted(self) -> bool:
        """Returns whether the width or the height is negative."""
        return self.right < self.left or self.bottom < self.top

    def area(self) -> float:
        """Returns the area in square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def is_flat(self) -> bool:
        """Returns whether the area is 0."""
        return self.right == self.left or self.bottom == self.top

    def exceeds(self, width: float, height: float) -> bool:
        """Returns whether a box exceeds its image by more than rounding."""
        return (
            min(self.left, self.top) < -_TOLERANCE
            or self.right > width + _TOLERANCE
            or self.bottom > height + _TOLERANCE
        )


class AnnotatedBox(NamedTuple):
    """A box, the size of its image, and its description for messages."""

    box: Box
    width: float
    height: float
    description: str


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


def reject_boxes(name: str, boxes: Sequence[AnnotatedBox], inverted: str) -> None:
    """Rejects boxes that are not finite, are inverted or exceed their images; also only flat ones.

    Args:
      name: name of the data set.
      boxes: all boxes.
      inverted: says of an inverted box what is wrong in the file.
    """
    for reason, is_wrong in (
        ("is not finite", lambda found: not found.box.is_finite()),
        (inverted, lambda found: found.box.is_inverted()),
        ("exceeds its image", lambda found: found.box.exceeds(found.width, found.height)),
    ):
        reject(name, [found.description for found in boxes if is_wrong(found)], reason)
    if all(found.box.is_flat() for found in boxes):
        reject(name, [found.description for found in boxes], "has no area")


def reject_flat(name: str, boxes: Sequence[AnnotatedBox]) -> None:
    """Raises UserError for a box without area, which no prediction of evaluation can match."""
    flat = [found.description for found in boxes if found.box.is_flat()]
    reject(name, flat, "has no area, so that evaluation never counts it as found")


def describe_box(box: Iterable[float], width: float, height: float, file: str) -> str:
    """Returns a box as annotated, with its file and the size of its image, for messages."""
    edges = ", ".join(f"{edge:g}" for edge in box)
    return f"box [{edges}] of {file}, {width:g}x{height:g} pixels,"


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


def reject_images(
    name: str, folder: Path, sizes: Mapping[str, tuple[float, float]], *, decodes: bool
) -> None:
    """Rejects images that are missing, unreadable, or not as large as annotated.

    Args:
      name: name of the data set.
      folder: folder of the images.
      sizes: annotated (width, height) of each file.
      decodes: decode whole images instead of reading only the headers of JPEGs.
    """
    reject_missing(name, folder, list(sizes))
    with ThreadPoolExecutor(available_cores()) as pool:
        images = pool.map(lambda file: _inspect(folder / file, decodes), sizes)
        found = dict(
            zip(
                sizes, progress.track(images, f"checking images of {name}", len(sizes)), strict=True
            )
        )
    reject(name, [file for file in sizes if found[file] is None], f"in {folder} is not an image")
    corrupt = [f"{file} ({reason})" for file, reason in found.items() if isinstance(reason, str)]
    reject(name, corrupt, f"in {folder} cannot be decoded")
    other = [
        f"{file} ({size[0]}x{size[1]}, annotated as {width:g}x{height:g} pixels)"
        for (file, size), (width, height) in zip(found.items(), sizes.values(), strict=True)
        if isinstance(size, tuple) and size != (width, height)
    ]
    reject(name, other, "has another size")
    long = [file for file, (width, height) in sizes.items() if is_elongated(width, height)]
    reject(name, long, f"in {folder} is too elongated for detectron2")


def is_elongated(width: float, height: float) -> bool:
    """Returns whether an image might have no rows or columns left after detectron2 resizes it."""
    return max(width, height) > _MAX_RATIO * min(width, height)


def _inspect(path: Path, decodes: bool) -> tuple[int, int] | str | None:
    """Returns (width, height), the reason why it cannot be decoded, or None if no image."""
    try:
        with open_regular(path) as file, Image.open(file, formats=readable_formats()) as image:
            height, width = upright_size(image)
            if decodes:
                # Reads a JPEG to its end, but computes only an eighth of its rows and columns.
                image.draft(None, (1, 1))
                image.load()
    except UnidentifiedImageError:
        return None
    except Exception as error:  # PIL's plugins raise many kinds of errors for corrupt files.
        return (str(error) or type(error).__name__).splitlines()[0]
    return width, height


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
