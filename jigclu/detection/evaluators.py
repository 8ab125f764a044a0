"""detectron2's evaluators of COCO's and VOC's AP, without their silent errors.

Classes without boxes in the test data are left out of the mean, and reported.
"""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from jigclu.detection import voc_layout
from jigclu.detection.datasets import Box
from jigclu.detection.voc_ap import Prediction, average_precisions
from jigclu.detection.voc_layout import VocObject

# Overlaps (intersection over union) that AP averages over, in percent.
_OVERLAPS = range(50, 100, 5)


class CocoEvaluator(COCOEvaluator):
    """COCO's AP of boxes, and of masks, computed by its official implementation."""

    def __init__(self, name: str, folder: Path, *, masks: bool = False) -> None:
        """Reads the annotations of a registered data set; predictions are written to folder.

        Without `masks`, only boxes are evaluated.
        """
        # detectron2 would choose tasks by the predictions, and evaluate no masks without any.
        tasks = ("bbox", "segm") if masks else ("bbox",)
        super().__init__(name, tasks, output_dir=str(folder), use_fast_impl=False)
        self._name = name
        # pycocotools never counts the box with id 0 as found, because 0 also means unmatched.
        for number, annotation in enumerate(self._coco_api.dataset["annotations"], start=1):
            annotation["id"] = number
        self._coco_api.createIndex()

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Returns only finite metrics; those that COCO does not define are NaN in detectron2."""
        if coco_eval is None:
            # Nothing was predicted.
            return dict.fromkeys(("AP", "AP50", "AP75"), 0.0)
        metrics = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if iou_type == "bbox":
            aps = {name: metrics.get(f"AP-{name}", 0.0) for name in class_names or ()}
            _report_absent(self._name, [name for name, ap in aps.items() if math.isnan(ap)])
        return {key: value for key, value in metrics.items() if math.isfinite(value)}


class VocEvaluator(PascalVOCDetectionEvaluator):
    """VOC's AP of boxes: with the 11-point rule for VOC 2007, else the area below the curve."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns AP, AP50, AP75 and the AP of each class below "bbox", on the main process."""
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        metadata = MetadataCatalog.get(self._dataset_name)
        images = voc_layout.read(self._dataset_name, Path(metadata.dirname), metadata.split)
        scores = {}
        for number, name in enumerate(self._class_names):
            objects = {
                image.name: [found for found in image.objects if found.class_name == name]
                for image in images
            }
            if all(found.is_difficult for image in objects.values() for found in image):
                continue
            lines = [line for part in gathered for line in part.get(number, ())]
            scores[name] = self._score([_parse(line) for line in lines], objects)
        _report_absent(
            self._dataset_name, [name for name in self._class_names if name not in scores]
        )
        of_overlap = [statistics.fmean(values) for values in zip(*scores.values(), strict=True)]
        metrics = {
            "AP": statistics.fmean(of_overlap),
            "AP50": of_overlap[_OVERLAPS.index(50)],
            "AP75": of_overlap[_OVERLAPS.index(75)],
        }
        classes = {f"AP-{name}": statistics.fmean(values) for name, values in scores.items()}
        return {"bbox": metrics | classes}

    def _score(
        self, predictions: Sequence[Prediction], objects: Mapping[str, Sequence[VocObject]]
    ) -> list[float]:
        """Returns the AP of a class, in percent, at each overlap."""
        overlaps = [overlap / 100 for overlap in _OVERLAPS]
        found = average_precisions(predictions, objects, overlaps, is_2007=self._is_2007)
        return [100 * precision for precision in found]


def _parse(line: str) -> Prediction:
    """Reads a prediction as detectron2 writes it, in pixels that count from 1."""
    image, *numbers = line.split()
    score, left, top, right, bottom = map(float, numbers)
    return Prediction(image, score, Box(left - 1, top - 1, right, bottom))


def _report_absent(name: str, classes: Sequence[str]) -> None:
    if classes:
        logging.getLogger(__name__).info(
            "Data set %s has no boxes of %s: the mean leaves these classes out",
            name,
            ", ".join(classes),
        )
