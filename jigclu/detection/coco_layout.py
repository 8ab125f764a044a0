"""Checks of data sets in COCO's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jigclu.detection import datasets
from jigclu.detection.datasets import Box, Summary
from jigclu.system.errors import UserError

_NUMBER = (int, float)
# Fields that detectron2 reads of COCO's records, and further ones that evaluation reads.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": (int, str), "category_id": int, "bbox": list},
}
_EVALUATED_FIELDS: dict[str, type | tuple[type, ...]] = {"area": _NUMBER, "iscrowd": _NUMBER}


def check(
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
    _reject_twice(name, annotations, contents)
    datasets.reject_empty(name, annotations, len(sizes), len(classes), len(boxes))
    if expected is not None and classes != expected:
        raise UserError(
            f"data set {name}: the categories of {annotations} are not the {len(expected)} of the "
            "known data set with this name; register yours under another name with --coco"
        )
    datasets.reject_images(
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
        box = Box(left, top, left + width, top + height)
        if not datasets.is_inside(box, image["width"], image["height"]):
            outside.append(
                datasets.describe_box(
                    annotation["bbox"], image["width"], image["height"], image["file_name"]
                )
            )
    datasets.reject(name, unknown, f"is not listed in {annotations}")
    datasets.reject(name, outside, "exceeds its image")
    if is_evaluated and all(annotation["iscrowd"] for annotation in boxes):
        raise UserError(
            f"data set {name}: all {len(boxes)} boxes are crowds, which evaluation ignores: set "
            "iscrowd of some annotations to 0, or use other data"
        )
    return Summary(len(sizes), len(boxes), tuple(classes[key] for key in sorted(classes)))


def _read_coco(name: str, path: Path, is_evaluated: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns the lists of a JSON file in COCO's layout, with complete records."""
    try:
        contents = json.loads(datasets.read_text(name, path))
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
        datasets.reject(name, wrong, f"is missing in {path}, or does not have COCO's type")
    _reject_annotations(name, path, lists["annotations"])
    return lists


def _reject_twice(name: str, path: Path, contents: dict[str, list[dict[str, Any]]]) -> None:
    for key, title, field in (
        ("annotations", "annotation", "id"),
        ("categories", "category", "id"),
        ("categories", "category", "name"),
        ("images", "image", "id"),
        ("images", "image", "file_name"),
    ):
        values = [f"{title} {record[field]}" for record in contents[key]]
        datasets.reject_repeated(name, values, f"occurs twice in {path}")


def _reject_annotations(name: str, path: Path, annotations: list[dict[str, Any]]) -> None:
    wrong, ignored = [], []
    for annotation in annotations:
        label = f"annotation {annotation['id']}"
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(edge, _NUMBER) for edge in box):
            wrong.append(f"bbox of {label}")
        if annotation.get("ignore"):
            ignored.append(label)
    datasets.reject(name, wrong, f"in {path} is not [left, top, width, height]")
    datasets.reject(name, ignored, f"in {path} is marked ignore, which detectron2 does not support")
