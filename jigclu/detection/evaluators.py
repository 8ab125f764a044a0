"""detectron2's evaluators of COCO's and VOC's AP, without their silent errors."""

from pathlib import Path

from detectron2.evaluation import COCOEvaluator


class CocoEvaluator(COCOEvaluator):
    """COCO's AP, computed by its official implementation."""

    def __init__(self, name: str, folder: Path) -> None:
        """Reads the annotations of a registered data set; predictions are written to folder."""
        super().__init__(name, output_dir=str(folder), use_fast_impl=False)
        # pycocotools never counts the box with id 0 as found, because 0 also means unmatched.
        for number, annotation in enumerate(self._coco_api.dataset["annotations"], start=1):
            annotation["id"] = number
        self._coco_api.createIndex()
