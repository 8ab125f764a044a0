"""Checks of annotated data sets in COCO's or VOC's layout before a long run.

This module does not need detectron2, which reads the same files again for training.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image

from jigclu.data.decode import upright_size
from jigclu.system.errors import UserError

# Pixels by which a box may exceed its image, due to rounding or to counting from 0 or 1.
_TOLERANCE = 1.0
_NUMBER = (int, float)
# Fields that detectron2 reads of COCO's records, and further ones that evaluation reads.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": (int, str), "category_id": int, "bbox": list},
}
_EVALUATED_FIELDS: dict[str, type | tuple[type, ...]] = {"area": _NUMBER, "iscrowd": _NUMBER}


class Summary(NamedTuple):
    """Size of a data set, and its class names in the order of their numbers."""

    images: int
    boxes: int
    classes: tuple[str, ...]


class _Box(NamedTuple):
    """Edges in pixels, counted from 0."""

    left: float
    top: float
    right: float
    bottom: float


def check_coco(
    name: str,
    images: Path,
    annotations: Path,
    expected: Mapping[int, str] | None = None,
    *,
    is_evaluated: bool,
) -> Summary:
    """Checks a data set in COCO's layout.

    Args:
      name: name of the data set, for messages.
      images: folder of the images.
      annotations: JSON file.
      expected: categories by number, if they are known beforehand.
      is_evaluated: also check the fields of each box that only evaluation reads.

    Raises:
      UserError: a file is missing, an image or category is not listed, an image has another
        size, or a box exceeds its image. The message names the first case and counts others.
    """
    contents = _read_coco(name, annotations, is_evaluated)
    sizes = {image["id"]: image for image in contents["images"]}
    classes = {category["id"]: category["name"] for category in contents["categories"]}
    boxes = contents["annotations"]
    _reject_empty(name, annotations, len(sizes), len(classes), len(boxes))
    if expected is not None and classes != expected:
        raise UserError(
            f"data set {name}: the categories of {annotations} are not the {len(expected)} of the "
            "known data set with this name; register yours under another name with --coco"
        )
    _reject_images(
        name,
        images,
        {image["file_name"]: (image["width"], image["height"]) for image in sizes.values()},
    )
    unknown, outside = [], []
    for annotation in boxes:
        image = sizes.get(annotation["image_id"])
        if image is None:
            unknown.append(f"annotation {annotation['id']} of image {annotation['image_id']}")
            continue
        if annotation["category_id"] not in classes:
            unknown.append(f"category {annotation['category_id']} in {image['file_name']}")
        left, top, width, height = annotation["bbox"]
        box = _Box(left, top, left + width, top + height)
        if not _is_inside(box, image["width"], image["height"]):
            outside.append(_describe(annotation["bbox"], image, image["file_name"]))
    _reject(name, unknown, f"is not listed in {annotations}")
    _reject(name, outside, "exceeds its image")
    return Summary(len(sizes), len(boxes), tuple(classes[key] for key in sorted(classes)))


def check_voc(
    name: str, folder: Path, split: str, classes: Sequence[str], *, is_evaluated: bool
) -> Summary:
    """Checks a split of a data set in VOC's layout.

    Args:
      name: name of the data set, for messages.
      folder: folder with Annotations, ImageSets/Main and JPEGImages.
      split: name of a list in ImageSets/Main.
      classes: class names that may occur.
      is_evaluated: also check the fields of each object that only evaluation reads.

    Raises:
      UserError: in the same cases as `check_coco`.
    """
    names = _read_list(name, folder / "ImageSets" / "Main" / f"{split}.txt")
    _reject_missing(name, folder / "Annotations", [f"{image}.xml" for image in names])
    sizes, unknown, outside, boxes = {}, [], [], 0
    for image in names:
        path = folder / "Annotations" / f"{image}.xml"
        try:
            tree = ElementTree.parse(path).getroot()
            size = {side: int(_text(tree, f"size/{side}")) for side in ("width", "height")}
            sizes[f"{image}.jpg"] = (size["width"], size["height"])
            for found in tree.iterfind("object"):
                boxes += 1
                if _text(found, "name") not in classes:
                    unknown.append(f"class {_text(found, 'name')!r} in {path.name}")
                edges = _edges(found, is_evaluated)
                # VOC counts pixels from 1 and includes the last ones.
                box = _Box(edges[0] - 1, edges[1] - 1, edges[2], edges[3])
                if not _is_inside(box, size["width"], size["height"]):
                    outside.append(_describe(edges, size, path.name))
        except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
            raise UserError(
                f"data set {name}: {path} is not an annotation of VOC ({error}): fix or replace it"
            ) from error
    _reject_empty(name, folder, len(names), len(classes), boxes)
    _reject_images(name, folder / "JPEGImages", sizes)
    _reject(name, unknown, f"is not one of the classes {', '.join(classes)}")
    _reject(name, outside, "exceeds its image")
    return Summary(len(names), boxes, tuple(classes))


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


def _read_list(name: str, path: Path) -> list[str]:
    """Returns the image names in a list of VOC, which holds one per line."""
    lines = [line.split() for line in _read(name, path).splitlines() if line.strip()]
    if len(lines) < 2 or any(len(words) > 1 for words in lines):
        raise UserError(
            f"data set {name}: {path} must name two images or more, one per line and nothing "
            "else: choose another split, or fix the list"
        )
    return [image for (image,) in lines]


def _edges(found: ElementTree.Element, is_evaluated: bool) -> list[float]:
    """Returns the annotated xmin, ymin, xmax and ymax of an object."""
    texts = [_text(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    if not is_evaluated:
        return [float(text) for text in texts]
    for flag in ("truncated", "difficult"):
        int(_text(found, flag))
    _text(found, "pose")
    return [int(text) for text in texts]


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(
            f"data set {name}: {path} cannot be read ({reason}): give another path, or put the "
            "data below ./datasets or $DETECTRON2_DATASETS"
        ) from error


def _read_coco(name: str, path: Path, is_evaluated: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns the lists of a JSON file in COCO's layout, with complete records."""
    try:
        contents = json.loads(_read(name, path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"data set {name}: {path} is not JSON ({error}): download or write it again"
        ) from error
    lists = contents if isinstance(contents, dict) else {}
    absent = [key for key in _FIELDS if not isinstance(lists.get(key), list)]
    if absent:
        raise UserError(
            f"data set {name}: {path} lacks lists of {', '.join(absent)}; expected the layout of "
            "COCO's instances_*.json"
        )
    for key, fields in _FIELDS.items():
        more = _EVALUATED_FIELDS if is_evaluated and key == "annotations" else {}
        wrong = [
            f"{field} of {key}[{number}]"
            for number, record in enumerate(lists[key])
            for field, kind in (fields | more).items()
            if not isinstance(record, dict) or not isinstance(record.get(field), kind)
        ]
        _reject(name, wrong, f"is missing in {path}, or does not have COCO's type")
    _reject_annotations(name, path, lists["annotations"])
    return lists


def _reject_annotations(name: str, path: Path, annotations: list[dict[str, Any]]) -> None:
    seen: set[int] = set()
    twice, wrong, ignored = [], [], []
    for annotation in annotations:
        label = f"annotation {annotation['id']}"
        if annotation["id"] in seen:
            twice.append(label)
        seen.add(annotation["id"])
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(edge, _NUMBER) for edge in box):
            wrong.append(f"bbox of {label}")
        if annotation.get("ignore"):
            ignored.append(label)
    _reject(name, twice, f"occurs twice in {path}")
    _reject(name, wrong, f"in {path} is not [left, top, width, height]")
    _reject(name, ignored, f"in {path} is marked ignore, which detectron2 does not support")


def _text(tree: ElementTree.Element, path: str) -> str:
    found = tree.findtext(path)
    if found is None:
        raise ValueError(f"{path} is missing")
    return found.strip()


def _is_inside(box: _Box, width: int, height: int) -> bool:
    return (
        all(math.isfinite(edge) for edge in box)
        and -_TOLERANCE <= box.left <= box.right <= width + _TOLERANCE
        and -_TOLERANCE <= box.top <= box.bottom <= height + _TOLERANCE
    )


def _describe(box: Iterable[float], size: dict[str, Any], file: str) -> str:
    edges = ", ".join(f"{edge:g}" for edge in box)
    return f"box [{edges}] of {file}, {size['width']}x{size['height']} pixels,"


def _reject_empty(name: str, path: Path, images: int, classes: int, boxes: int) -> None:
    if not images or not classes or not boxes:
        raise UserError(
            f"data set {name}: {path} has {images} images, {classes} classes and {boxes} boxes; "
            "expected at least one of each"
        )


def _reject_missing(name: str, folder: Path, files: Sequence[str]) -> None:
    _reject(name, [file for file in files if not (folder / file).is_file()], f"is not in {folder}")


def _reject_images(name: str, folder: Path, sizes: Mapping[str, tuple[float, float]]) -> None:
    """Rejects images that are missing, unreadable, or not as large as annotated."""
    _reject_missing(name, folder, list(sizes))
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
    _reject(name, unreadable, f"in {folder} is not an image")
    _reject(name, other, "has another size")


def _reject(name: str, found: Sequence[str], reason: str) -> None:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"data set {name}: {found[0]} {reason}{more}: fix the data set, or leave it out"
        )
