"""What an annotated data set must hold before days are spent on it; reads COCO and VOC alike.

Nothing here needs detectron2, which reads the same files again for training.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from jigclu.errors import UserError

# Pixels that a box may reach over the edge: of rounding, and of counting from 0 or 1.
_TOLERANCE = 1.0


class Summary(NamedTuple):
    """What a data set holds. classes: names, in the order of their numbers."""

    images: int
    boxes: int
    classes: tuple[str, ...]


class _Box(NamedTuple):
    """Edges in pixels, from 0."""

    left: float
    top: float
    right: float
    bottom: float


def check_coco(name: str, images: Path, annotations: Path) -> Summary:
    """Looks through a data set in COCO's layout.

    Args:
      name: of the data set, for errors.
      images: folder of the images.
      annotations: the JSON file.

    Raises:
      UserError: an absent file, an image or a category that is not listed, a box
        outside its image; names the first and says how many there are.
    """
    contents = _read_json(name, annotations)
    sizes = {image["id"]: image for image in contents["images"]}
    classes = {category["id"]: category["name"] for category in contents["categories"]}
    _refuse_empty(name, annotations, len(sizes), len(classes))
    _refuse_absent(name, images, [image["file_name"] for image in sizes.values()])
    unknown, outside = [], []
    for annotation in contents["annotations"]:
        image = sizes.get(annotation["image_id"])
        if image is None:
            unknown.append(f"annotation {annotation['id']} of image {annotation['image_id']}")
            continue
        if annotation["category_id"] not in classes:
            unknown.append(f"category {annotation['category_id']} in {image['file_name']}")
        left, top, width, height = annotation["bbox"]
        box = _Box(left, top, left + width, top + height)
        if not _is_inside(box, image["width"], image["height"]):
            outside.append(_placed(annotation["bbox"], image, image["file_name"]))
    _refuse(name, unknown, f"is not listed in {annotations}")
    _refuse(name, outside, "is outside its image")
    return Summary(
        len(sizes), len(contents["annotations"]), tuple(classes[key] for key in sorted(classes))
    )


def check_voc(
    name: str, folder: Path, split: str, classes: Sequence[str], *, is_evaluated: bool
) -> Summary:
    """Looks through a split of a data set in VOC's layout.

    Args:
      name: of the data set, for errors.
      folder: holds Annotations, ImageSets/Main and JPEGImages.
      split: name of a list in ImageSets/Main.
      classes: names that may occur.
      is_evaluated: the evaluation reads more of each object than training does.

    Raises:
      UserError: as `check_coco`.
    """
    names = _listed(name, folder / "ImageSets" / "Main" / f"{split}.txt", len(classes))
    _refuse_absent(name, folder / "JPEGImages", [f"{image}.jpg" for image in names])
    _refuse_absent(name, folder / "Annotations", [f"{image}.xml" for image in names])
    unknown, outside, boxes = [], [], 0
    for image in names:
        path = folder / "Annotations" / f"{image}.xml"
        try:
            tree = ElementTree.parse(path).getroot()
            size = {side: int(_text(tree, f"size/{side}")) for side in ("width", "height")}
            for found in tree.iterfind("object"):
                boxes += 1
                if _text(found, "name") not in classes:
                    unknown.append(f"class {_text(found, 'name')!r} in {path.name}")
                edges = _edges(found, is_evaluated)
                # Pixels are counted from 1, and the last ones belong to the box.
                box = _Box(edges[0] - 1, edges[1] - 1, edges[2], edges[3])
                if not _is_inside(box, size["width"], size["height"]):
                    outside.append(_placed(edges, size, path.name))
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(
                f"data set {name}: {path} is no annotation of VOC ({error}): mend or replace it"
            ) from error
    _refuse(name, unknown, f"is none of the classes {', '.join(classes)}")
    _refuse(name, outside, "is outside its image")
    return Summary(len(names), boxes, tuple(classes))


def check_same_classes(summaries: dict[str, Summary]) -> None:
    """Raises UserError unless all data sets, by name, have the same classes in one order."""
    (first, expected), *others = summaries.items()
    for name, summary in others:
        if summary.classes != expected.classes:
            differing = sorted(set(summary.classes) ^ set(expected.classes))
            told = ", ".join(differing) if differing else "in another order"
            raise UserError(
                f"data sets {first} and {name} have different classes ({told}): "
                "what is trained and what is evaluated must agree; mend their categories"
            )


def _listed(name: str, path: Path, classes: int) -> list[str]:
    """Returns the names of images that a list of VOC holds, one a line."""
    lines = [line.split() for line in _read(name, path).splitlines() if line.strip()]
    _refuse_empty(name, path, len(lines), classes)
    if len(lines) == 1 or any(len(words) > 1 for words in lines):
        raise UserError(
            f"data set {name}: {path} must name two images or more, one a line and nothing "
            "else: give another split, or mend it"
        )
    return [image for (image,) in lines]


def _edges(found: ElementTree.Element, is_evaluated: bool) -> list[float]:
    """Returns xmin, ymin, xmax, ymax of an object as it is annotated."""
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
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise UserError(
            f"data set {name}: {path} cannot be read ({reason}); give another path, or lay the "
            "data out below ./datasets or $DETECTRON2_DATASETS"
        ) from error


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(_read(name, path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"data set {name}: {path} is no JSON ({error}): download or write it again"
        ) from error
    keys = ("images", "annotations", "categories")
    absent = [key for key in keys if not isinstance(contents, dict) or key not in contents]
    if absent:
        raise UserError(
            f"data set {name}: {path} lacks {', '.join(absent)}; expected the layout of COCO's "
            "instances_*.json"
        )
    return contents


def _text(tree: ElementTree.Element, path: str) -> str:
    found = tree.findtext(path)
    if found is None:
        raise ValueError(f"{path} is absent")
    return found.strip()


def _is_inside(box: _Box, width: int, height: int) -> bool:
    return (
        all(math.isfinite(edge) for edge in box)
        and -_TOLERANCE <= box.left <= box.right <= width + _TOLERANCE
        and -_TOLERANCE <= box.top <= box.bottom <= height + _TOLERANCE
    )


def _placed(box: Iterable[float], size: dict[str, Any], file: str) -> str:
    edges = ", ".join(f"{edge:g}" for edge in box)
    return f"box [{edges}] of {file}, {size['width']}x{size['height']} pixels,"


def _refuse_empty(name: str, path: Path, images: int, classes: int) -> None:
    if not images or not classes:
        raise UserError(
            f"data set {name}: {path} has {images} images and {classes} classes; "
            "expected at least one of each"
        )


def _refuse_absent(name: str, folder: Path, files: Sequence[str]) -> None:
    _refuse(name, [file for file in files if not (folder / file).is_file()], f"is not in {folder}")


def _refuse(name: str, found: Sequence[str], reason: str) -> None:
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"data set {name}: {found[0]} {reason}{more}: mend the data set, or take it out"
        )
