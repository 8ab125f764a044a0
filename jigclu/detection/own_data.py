"""Data sets that are registered with detectron2: the user's own, which flags name, and VOC."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from jigclu.detection import voc_layout
from jigclu.system import files
from jigclu.system.errors import UserError

# Evaluator type of own data sets in VOC's layout; detectron2's own VOC data have "pascal_voc".
VOC_LAYOUT = "voc_layout"


class OwnData(NamedTuple):
    """The user's own data sets, from flags.

    coco: name, image folder and JSON file of each data set.
    voc: name, folder and split of each data set.
    classes: class names of the VOC data sets.
    """

    coco: list[list[str]]
    voc: list[list[str]]
    classes: list[str]

    def names(self) -> list[str]:
        """Returns the names of all data sets."""
        return [name for name, *_ in (*self.coco, *self.voc)]

    def register(self) -> None:
        """Registers the data sets with detectron2, as every process must.

        Also registers our reader for VOC itself.

        Raises:
          UserError: a name is taken, or the class names of VOC data sets are missing.
        """
        if self.voc and not self.classes:
            raise UserError("--voc needs class names: give --class-names")
        if self.classes and not self.voc:
            raise UserError(
                f"--class-names is {','.join(self.classes)}, but is only for data sets of --voc: "
                "omit it, because COCO's layout holds the names"
            )
        known = set(DatasetCatalog.list())
        for name in self.names():
            if name in known:
                raise UserError(f"data set {name} is registered already; choose another name")
            known.add(name)
        for name, images, annotations in self.coco:
            register_coco_instances(name, {}, annotations, images)
        for name, folder, split in self.voc:
            _register_voc(name, Path(folder), split, self.classes)
        _replace_reader_of_voc()


def write_as_coco(name: str, folder: Path) -> None:
    """Writes an own data set in VOC's layout as JSON into folder, for COCO's evaluator."""
    metadata = MetadataCatalog.get(name)
    images = voc_layout.read(name, Path(metadata.dirname), metadata.split)
    path = folder / f"{name}.json"
    contents = voc_layout.to_coco(images, metadata.thing_classes)
    # Written atomically, because every process writes the same file.
    files.write_file(path, json.dumps(contents).encode())
    metadata.json_file = str(path)


def _register_voc(name: str, folder: Path, split: str, classes: list[str]) -> None:
    DatasetCatalog.register(name, functools.partial(_records, name))
    MetadataCatalog.get(name).set(
        thing_classes=classes, dirname=str(folder), split=split, evaluator_type=VOC_LAYOUT
    )


def _replace_reader_of_voc() -> None:
    """Registers our reader for the official data: it accepts spaces and lists of one image."""
    for name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, functools.partial(_records, name))


def _records(name: str) -> list[dict[str, Any]]:
    """Returns detectron2's records; difficult objects are trained on, as in detectron2."""
    metadata = MetadataCatalog.get(name)
    folder = Path(metadata.dirname)
    return [
        {
            "file_name": str(folder / "JPEGImages" / f"{image.name}.jpg"),
            "image_id": image.name,
            "width": image.width,
            "height": image.height,
            "annotations": [
                {
                    "category_id": metadata.thing_classes.index(found.class_name),
                    "bbox": list(found.box),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "is_difficult": found.is_difficult,
                }
                for found in image.objects
            ],
        }
        for image in voc_layout.read(name, folder, metadata.split)
    ]
