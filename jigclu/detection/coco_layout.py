"""Checks of data sets in COCO's layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jigclu.detection import datasets, masks
from jigclu.detection.datasets import AnnotatedBox, Box, Summary, Use
from jigclu.system.errors import UserError

_NUMBER = (int, float)
# Fields that detectron2 reads of COCO's records, and further ones that evaluation reads.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": (int, str), "category_id": int, "bbox": list},
}
# Square pixels; pycocotools ignores larger objects.
_MAX_AREA = 1e10
_EVALUATED_FIELDS: dict[str, type | tuple[type, ...]] = {"area": _NUMBER, "iscrowd": _NUMBER}


def check(
    name: str,
    images: Path,
    annotations: Path,
    use: Use,
    expected: Mapping[int, str] | None = None,
) -> Summary:
    """Checks a data set in COCO's layout.

    Args:
      name: name of the data set, for messages.
      images: folder of the images.
      annotations: JSON file.
      use: what the run does with the data.
      expected: categories by number, if they are known beforehand.

    Raises:
      UserError: a file is missing, an image or category is not listed, an image has another
        size, or a box or mask is invalid. The message names the first case and counts others.
    """
    contents = _read_coco(name, annotations, use.is_evaluated)
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
    _reject_unlisted(name, annotations, contents)
    _reject_only_crowds(name, boxes, use)
    datasets.reject_images(
        name,
        images,
        {image["file_name"]: (image["width"], image["height"]) for image in sizes.values()},
        decodes=use.decodes_images,
    )
    annotated = [_annotated(record, sizes[record["image_id"]]) for record in boxes]
    datasets.reject_boxes(name, annotated, "has a negative width or height")
    if use.is_evaluated and expected is None:
        datasets.reject_flat(name, annotated)
    _reject_masks(name, annotations, contents, use, is_known=expected is not None)
    return Summary(
        images=len(sizes),
        boxes=len(boxes),
        classes=tuple(classes[key] for key in sorted(classes)),
        empty_images=len(sizes) - len({box["image_id"] for box in boxes if not _is_crowd(box)}),
        crowds=sum(_is_crowd(box) for box in boxes),
        flat_boxes=sum(found.box.is_flat() for found in annotated),
    )


def read_classes(name: str, path: Path) -> tuple[str, ...]:
    """Returns the class names of a JSON file in the order of their numbers."""
    categories = _read_coco(name, path, is_evaluated=False)["categories"]
    return tuple(record["name"] for record in sorted(categories, key=lambda found: found["id"]))


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
    if is_evaluated:
        _reject_areas(name, path, lists["annotations"])
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


def _reject_unlisted(name: str, path: Path, contents: dict[str, list[dict[str, Any]]]) -> None:
    images = {image["id"]: image["file_name"] for image in contents["images"]}
    if len({type(number) for number in images}) > 1:
        raise UserError(
            f"data set {name}: the ids of images in {path} are numbers and texts: use only one kind"
        )
    categories = {category["id"] for category in contents["categories"]}
    unknown = []
    for record in contents["annotations"]:
        if record["image_id"] not in images:
            unknown.append(f"annotation {record['id']} of image {record['image_id']}")
        elif record["category_id"] not in categories:
            unknown.append(f"category {record['category_id']} in {images[record['image_id']]}")
    datasets.reject(name, unknown, f"is not listed in {path}")


def _reject_only_crowds(name: str, annotations: list[dict[str, Any]], use: Use) -> None:
    if all(_is_crowd(record) for record in annotations):
        stage = "evaluation" if use.is_evaluated else "training"
        raise UserError(
            f"data set {name}: all {len(annotations)} boxes are crowds, which {stage} ignores: "
            "set iscrowd of some annotations to 0, or use other data"
        )


def _reject_annotations(name: str, path: Path, annotations: list[dict[str, Any]]) -> None:
    wrong, no_number, no_points, ignored = [], [], [], []
    for annotation in annotations:
        label = f"annotation {annotation['id']}"
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(edge, _NUMBER) for edge in box):
            wrong.append(f"bbox of {label}")
        if not isinstance(annotation.get("iscrowd", 0), _NUMBER):
            no_number.append(f"iscrowd of {label}")
        points = annotation.get("keypoints") or []
        if not isinstance(points, list) or not all(isinstance(part, _NUMBER) for part in points):
            no_points.append(f"keypoints of {label}")
        if annotation.get("ignore"):
            ignored.append(label)
    datasets.reject(name, wrong, f"in {path} is not [left, top, width, height]")
    datasets.reject(name, no_number, f"in {path} is not a number")
    datasets.reject(name, no_points, f"in {path} is not a list of numbers")
    datasets.reject(name, ignored, f"in {path} is marked ignore, which detectron2 does not support")


def _reject_areas(name: str, path: Path, annotations: list[dict[str, Any]]) -> None:
    """Rejects areas with which pycocotools would ignore an object."""
    wrong = [
        f"area {annotation['area']:g} of annotation {annotation['id']}"
        for annotation in annotations
        if not 0 <= annotation["area"] <= _MAX_AREA
    ]
    datasets.reject(name, wrong, f"in {path} is not in [0, {_MAX_AREA:g}]")


def _reject_masks(
    name: str, path: Path, contents: dict[str, list[dict[str, Any]]], use: Use, *, is_known: bool
) -> None:
    """Rejects invalid masks, which detectron2 reads in any case, and missing ones.

    detectron2 removes polygons that are too short. In known data sets this is accepted, unless
    it removes a whole object.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in contents["images"]}
    absent, encoded, flat = [], [], []
    for record in contents["annotations"]:
        mask = record.get("segmentation")
        label = f"annotation {record['id']}"
        size = sizes[record["image_id"]]
        problem = masks.describe_problem(mask, size, is_known=is_known) if mask else None
        if problem:
            datasets.reject(name, [f"segmentation of {label}"], f"in {path} {problem}")
        if not mask and (use.is_evaluated or not _is_crowd(record)):
            absent.append(label)
        if isinstance(mask, dict) and not _is_crowd(record):
            encoded.append(label)
        if isinstance(mask, list) and mask and not any(map(masks.area, mask)):
            flat.append(f"segmentation of {label} in {path}")
    if use.mask_format:
        datasets.reject(name, absent, f"in {path} has no segmentation, but MODEL.MASK_ON is True")
        if use.is_evaluated and not is_known:
            datasets.reject(name, flat, "has no area, so that evaluation never counts it as found")
    if use.mask_format == "polygon" and use.is_trained and encoded:
        raise UserError(
            f"data set {name}: {encoded[0]} in {path} is a run-length encoding, but "
            "INPUT.MASK_FORMAT is polygon: set it to bitmask"
        )


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return annotation.get("iscrowd", 0) != 0


def _annotated(annotation: dict[str, Any], image: dict[str, Any]) -> AnnotatedBox:
    left, top, width, height = annotation["bbox"]
    size = image["width"], image["height"]
    description = datasets.describe_box(annotation["bbox"], *size, image["file_name"])
    return AnnotatedBox(Box(left, top, left + width, top + height), *size, description)
