"""detectron2's evaluators of COCO's and VOC's AP, without their silent errors.

Classes without boxes in the test data are left out of the mean, and reported.
"""

import logging
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

from jigclu.detection import voc_layout

# Overlaps (intersection over union) that AP averages over, in percent.
_OVERLAPS = range(50, 100, 5)


class CocoEvaluator(COCOEvaluator):
    """COCO's AP, computed by its official implementation."""

    def __init__(self, name: str, folder: Path) -> None:
        """Reads the annotations of a registered data set; predictions are written to folder."""
        super().__init__(name, output_dir=str(folder), use_fast_impl=False)
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
        _report_absent(
            self._name,
            [name for name in class_names or () if math.isnan(metrics.get(f"AP-{name}", 0.0))],
        )
        return {key: value for key, value in metrics.items() if math.isfinite(value)}


class VocEvaluator(PascalVOCDetectionEvaluator):
    """VOC's AP: with the 11-point rule for VOC 2007, else the area below the curve."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns AP, AP50, AP75 and the AP of each class below "bbox", on the main process."""
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        lines = {
            number: [line for part in gathered for line in part.get(number, ())]
            for number in range(len(self._class_names))
        }
        present = self._present()
        _report_absent(
            self._dataset_name, [name for name in self._class_names if name not in present]
        )
        scores = {
            name: self._score(name, lines[number])
            for number, name in enumerate(self._class_names)
            if name in present
        }
        of_overlap = [statistics.fmean(values) for values in zip(*scores.values(), strict=True)]
        metrics = {
            "AP": statistics.fmean(of_overlap),
            "AP50": of_overlap[_OVERLAPS.index(50)],
            "AP75": of_overlap[_OVERLAPS.index(75)],
        }
        classes = {f"AP-{name}": statistics.fmean(values) for name, values in scores.items()}
        return {"bbox": metrics | classes}

    def _present(self) -> set[str]:
        """Returns the classes that evaluation counts."""
        metadata = MetadataCatalog.get(self._dataset_name)
        images = voc_layout.read(self._dataset_name, Path(metadata.dirname), metadata.split)
        return {
            found.class_name
            for image in images
            for found in image.objects
            if not found.is_difficult
        }

    def _score(self, class_name: str, lines: Sequence[str]) -> list[float]:
        """Returns the AP of a class, in percent, at each overlap."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.txt"
            path.write_text("\n".join(lines), encoding="utf-8")
            return [
                100
                * voc_eval(
                    str(path),
                    self._anno_file_template,
                    self._image_set_path,
                    class_name,
                    ovthresh=overlap / 100,
                    use_07_metric=self._is_2007,
                )[2]
                for overlap in _OVERLAPS
            ]


def _report_absent(name: str, classes: Sequence[str]) -> None:
    if classes:
        logging.getLogger(__name__).info(
            "Data set %s has no boxes of %s: the mean leaves these classes out",
            name,
            ", ".join(classes),
        )
