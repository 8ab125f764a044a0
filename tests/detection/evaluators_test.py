"""Tests of jigclu.detection.evaluators with perfect predictions."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
import json
from collections.abc import Sequence
from typing import Any

import torch
from absl.testing import absltest, parameterized
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from jigclu.detection.evaluators import CocoEvaluator
from tests.folder_case import FolderTestCase


class EvaluatorTestCase(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        known = set(DatasetCatalog.list())
        self.addCleanup(self._forget, known)

    def _forget(self, known: set[str]) -> None:
        for name in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)

    def score(self, name: str, evaluator: DatasetEvaluator) -> dict[str, float]:
        """Returns the metrics of the annotated boxes as predictions."""
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            boxes = [
                BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)
                for box in record["annotations"]
            ]
            found = Instances(
                (record["height"], record["width"]),
                pred_boxes=Boxes(torch.tensor(boxes).view(-1, 4)),
                scores=torch.linspace(0.9, 0.8, len(boxes)),
                pred_classes=torch.tensor([box["category_id"] for box in record["annotations"]]),
            )
            evaluator.process([record], [{"instances": found}])
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluator.evaluate()["bbox"]


class CocoEvaluatorTest(EvaluatorTestCase):
    def write(self, ids: Sequence[int], **contents: Any) -> None:
        """Registers "mine": 4 images with two boxes each, of two classes."""
        categories = [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}]
        images = [
            {"id": number, "file_name": f"{number}.jpg", "width": 90, "height": 60}
            for number in range(4)
        ]
        annotations = [
            {"id": number, "image_id": place // 2, "category_id": 4 + 3 * (place % 2), "area": 800}
            | {"bbox": [5 + 40 * (place % 2), 10 + place, 40, 20], "iscrowd": 0}
            for place, number in enumerate(ids)
        ]
        whole = {"images": images, "annotations": annotations, "categories": categories} | contents
        path = self.folder / "boxes.json"
        path.write_text(json.dumps(whole), encoding="utf-8")
        register_coco_instances("mine", {}, str(path), str(self.folder))

    @parameterized.parameters(
        [range(8)], [range(1, 9)], [range(-4, 4)], [[2**60 + number for number in range(8)]]
    )
    def test_perfect_predictions_score_100_whatever_the_annotation_ids(
        self, ids: Sequence[int]
    ) -> None:
        self.write(ids)
        metrics = self.score("mine", CocoEvaluator("mine", self.folder))
        self.assertAlmostEqual(metrics["AP"], 100)
        self.assertAlmostEqual(metrics["AP-dog"], 100)


if __name__ == "__main__":
    absltest.main()
