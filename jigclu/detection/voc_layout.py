"""Data sets in VOC's layout: reading, checks, and conversion to COCO's layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from jigclu.detection import datasets
from jigclu.detection.datasets import AnnotatedBox, Box, Summary, Use
from jigclu.system.errors import UserError


class VocObject(NamedTuple):
    """An annotated object.

    box: edges in pixels, counted from 0, while VOC's files count from 1.
    is_difficult: evaluation ignores the object.
    """

    class_name: str
    box: Box
    is_difficult: bool


class VocImage(NamedTuple):
    """An annotated image; its name has no suffix."""

    name: str
    width: int
    height: int
    objects: tuple[VocObject, ...]


def read(name: str, folder: Path, split: str) -> list[VocImage]:
    """Reads a split of a data set in VOC's layout.

    Args:
      name: name of the data set, for messages.
      folder: folder with Annotations, ImageSets/Main and JPEGImages.
      split: name of a list in ImageSets/Main.

    Raises:
      UserError: a file is missing or is not in VOC's format, or an image is listed twice.
    """
    names = _read_list(name, folder / "ImageSets" / "Main" / f"{split}.txt")
    annotations = folder / "Annotations"
    datasets.reject_missing(name, annotations, [f"{image}.xml" for image in names])
    return [_read_image(name, annotations, image) for image in names]


def check(name: str, folder: Path, split: str, classes: Sequence[str], use: Use) -> Summary:
    """Checks a split of a data set in VOC's layout.

    Args:
      name: name of the data set, for messages.
      folder: folder with Annotations, ImageSets/Main and JPEGImages.
      split: name of a list in ImageSets/Main.
      classes: class names that may occur.
      use: what the run does with the data.

    Raises:
      UserError: in the same cases as `coco_layout.check`.
    """
    images = read(name, folder, split)
    objects = [found for image in images for found in image.objects]
    datasets.reject_empty(name, folder, len(images), len(classes), len(objects))
    datasets.reject_repeated(name, classes, "is the name of two classes")
    if use.mask_format:
        raise UserError(
            f"data set {name} has no masks, but MODEL.MASK_ON is True: set it to False, or use "
            "data in COCO's layout"
        )
    datasets.reject_images(
        name,
        folder / "JPEGImages",
        {f"{image.name}.jpg": (image.width, image.height) for image in images},
        decodes=use.decodes_images,
    )
    unknown = [
        f"class {found.class_name!r} in {image.name}.xml"
        for image in images
        for found in image.objects
        if found.class_name not in classes
    ]
    datasets.reject(name, unknown, f"is not one of the classes {', '.join(classes)}")
    boxes = [_annotated(found.box, image) for image in images for found in image.objects]
    datasets.reject_boxes(name, boxes, "has swapped corners: xmin > xmax or ymin > ymax")
    if use.is_evaluated:
        datasets.reject_flat(name, boxes)
        if all(found.is_difficult for found in objects):
            raise UserError(
                f"data set {name}: all {len(objects)} boxes are difficult, which evaluation "
                "ignores: set <difficult> of some objects to 0, or choose another split"
            )
    return Summary(
        images=len(images),
        boxes=len(objects),
        classes=tuple(classes),
        empty_images=sum(not image.objects for image in images),
        flat_boxes=sum(found.box.is_flat() for found in objects),
    )


def to_coco(images: Sequence[VocImage], classes: Sequence[str]) -> dict[str, Any]:
    """Returns the contents of a JSON file in COCO's layout, for evaluation with COCO's AP.

    Difficult objects become crowds, which evaluation ignores. Numbers of classes count from 0.
    """
    annotations = [
        {
            "image_id": image.name,
            "category_id": classes.index(found.class_name),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": int(found.is_difficult),
        }
        for image in images
        for found in image.objects
        for left, top, right, bottom in [found.box]
    ]
    return {
        "images": [
            {"id": image.name, "width": image.width, "height": image.height} for image in images
        ],
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
    }


def _read_list(name: str, path: Path) -> list[str]:
    """Returns the image names in a list of VOC, which holds one per line."""
    lines = [line.split() for line in datasets.read_text(name, path).splitlines() if line.strip()]
    if not lines or any(len(words) > 1 for words in lines):
        raise UserError(
            f"data set {name}: {path} must name at least one image, one per line, without spaces: "
            "choose another split, or fix the list"
        )
    images = [image for (image,) in lines]
    datasets.reject_repeated(name, images, f"is listed twice in {path}")
    return images


def _read_image(name: str, folder: Path, image: str) -> VocImage:
    path = folder / f"{image}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (int(_text(tree, f"size/{side}")) for side in ("width", "height"))
        objects = tuple(_read_object(found) for found in tree.iterfind("object"))
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise UserError(
            f"data set {name}: {path} is not an annotation of VOC ({error}): fix or replace it"
        ) from error
    return VocImage(image, width, height, objects)


def _read_object(found: ElementTree.Element) -> VocObject:
    texts = [_text(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = (float(text) for text in texts)
    # VOC counts pixels from 1 and includes the last ones.
    box = Box(left - 1, top - 1, right, bottom)
    is_difficult = int(found.findtext("difficult", "0").strip()) != 0
    return VocObject(_text(found, "name"), box, is_difficult)


def _text(tree: ElementTree.Element, path: str) -> str:
    found = tree.findtext(path)
    if found is None:
        raise ValueError(f"{path} is missing")
    return found.strip()


def _annotated(box: Box, image: VocImage) -> AnnotatedBox:
    edges = (box.left + 1, box.top + 1, box.right, box.bottom)
    description = datasets.describe_box(edges, image.width, image.height, f"{image.name}.xml")
    return AnnotatedBox(box, image.width, image.height, description)
