"""Tests of jigclu.detection.evaluators with perfect predictions."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from absl.testing import absltest, parameterized
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask
from pycocotools.mask import decode

from jigclu.detection.evaluators import CocoEvaluator, VocEvaluator
from jigclu.detection.own_data import OwnData
from jigclu.detection.trainer import Trainer
from tests.folder_case import FolderTestCase


def instances(record: dict[str, Any], annotations: list[dict[str, Any]]) -> Instances:
    """Returns annotated boxes as predictions for the image of a record."""
    boxes = [
        BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS) for box in annotations
    ]
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor(boxes).view(-1, 4)),
        scores=torch.linspace(0.9, 0.8, len(boxes)),
        pred_classes=torch.tensor([box["category_id"] for box in annotations]),
    )


def masks(record: dict[str, Any]) -> torch.Tensor:
    """Returns the annotated masks of a record, bool [boxes, height, width]."""
    height, width = record["height"], record["width"]
    found = [
        polygons_to_bitmask(mask, height, width) if isinstance(mask, list) else decode(mask) > 0
        for mask in (box["segmentation"] for box in record["annotations"])
    ]
    return torch.tensor(np.stack(found)).bool()


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
            found = instances(record, record["annotations"])
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

    def test_classes_without_boxes_are_left_out_and_reported(self) -> None:
        self.write(
            range(8), categories=[{"id": 4 + number, "name": f"c{number}"} for number in range(4)]
        )
        with self.assertLogs("jigclu.detection.evaluators") as logs:
            metrics = self.score("mine", CocoEvaluator("mine", self.folder))
        self.assertIn("mine has no boxes of c1, c2: the mean leaves", logs.output[0])
        self.assertAlmostEqual(metrics["AP"], 100)
        self.assertNotIn("AP-c1", metrics)
        # All boxes are small: metrics of larger ones are not defined.
        self.assertNotIn("APl", metrics)

    def test_perfect_masks_and_boxes_score_100(self) -> None:
        self.write(range(8))
        self.annotate_masks()
        evaluator = CocoEvaluator("mine", self.folder, masks=True)
        for shift, expected in ((0, 100), (30, 0)):
            evaluator.reset()
            for record in DatasetCatalog.get("mine"):
                found = instances(record, record["annotations"])
                # Shifts only masks.
                found.pred_masks = masks(record).roll(shift, 1)
                evaluator.process([record], [{"instances": found}])
            with contextlib.redirect_stdout(io.StringIO()):
                metrics = evaluator.evaluate()
            self.assertCountEqual(metrics, ("bbox", "segm"))
            for key in ("AP", "AP75", "AP-cat", "AP-dog"):
                self.assertAlmostEqual(metrics["bbox"][key], 100, msg=key)
                self.assertAlmostEqual(metrics["segm"][key], expected, msg=key)

    def annotate_masks(self) -> None:
        """Gives all annotations a polygon, except for one with a run-length encoding."""
        path = self.folder / "boxes.json"
        contents = json.loads(path.read_text(encoding="utf-8"))
        for annotation in contents["annotations"]:
            left, top, width, height = annotation["bbox"]
            right, bottom = left + width, top + height
            annotation["segmentation"] = [[left, top, right, top, right, bottom, left + 9, bottom]]
        contents["annotations"][0]["segmentation"] = {
            "counts": [60 * 6 + 12, *[18, 42] * 35, 18, 90 * 60 - 60 * 42 + 30],
            "size": [60, 90],
        }
        path.write_text(json.dumps(contents), encoding="utf-8")

    def test_no_predictions_score_0(self) -> None:
        self.write(range(8))
        self.annotate_masks()
        evaluator = CocoEvaluator("mine", self.folder, masks=True)
        evaluator.reset()
        record = DatasetCatalog.get("mine")[0]
        evaluator.process([record], [{"instances": instances(record, [])}])
        metrics = evaluator.evaluate()
        self.assertEqual(metrics["bbox"], {"AP": 0, "AP50": 0, "AP75": 0})
        self.assertEqual(metrics["segm"], {"AP": 0, "AP50": 0, "AP75": 0})


_OBJECT = """<object><name>{}</name><pose>x</pose><truncated>0</truncated>
<difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>
</bndbox></object>"""


def _random_object(random: np.random.Generator) -> tuple[object, ...]:
    left, top = random.integers(1, 50), random.integers(1, 30)
    width, height = random.integers(8, 30, 2)
    is_difficult = int(random.random() < 0.2)
    return random.choice(["cat", "dog"]), is_difficult, left, top, left + width, top + height


class VocTest(EvaluatorTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("ImageSets/Main", "Annotations"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "ImageSets/Main/test.txt").write_text("0\n1\n2\n", encoding="utf-8")
        for number in range(3):
            self.annotate(number, ("cat", 0, 1, 1, 30, 20), (" dog ", 0, 40, 9, 80, 60))

    def annotate(self, number: int, *objects: tuple[object, ...]) -> None:
        text = "".join(_OBJECT.format(*values) for values in objects)
        (self.folder / f"Annotations/{number}.xml").write_text(
            f"<annotation><size><width>90</width><height>60</height></size>{text}</annotation>",
            encoding="utf-8",
        )

    def own(self, *classes: str) -> DatasetEvaluator:
        OwnData([], [["mine", str(self.folder), "test"]], list(classes)).register()
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(self.folder / "run")
        return Trainer.build_evaluator(cfg, "mine")

    def official(self, *classes: str, year: int = 2007) -> DatasetEvaluator:
        """Registers data as detectron2 registers VOC."""
        register_pascal_voc("mine", str(self.folder), "test", year, classes)
        MetadataCatalog.get("mine").evaluator_type = "pascal_voc"
        OwnData([], [], []).register()
        return Trainer.build_evaluator(get_cfg(), "mine")

    def test_own_data_are_scored_with_cocos_ap(self) -> None:
        self.assertIsInstance(self.own("cat", "dog"), CocoEvaluator)

    def test_perfect_predictions_of_own_data_score_100(self) -> None:
        self.annotate(1, ("cat", 0, 2.5, 1.25, 30.5, 20.75), ("dog", 1, 40, 1, 80, 60))
        with self.assertLogs("jigclu.detection.evaluators") as logs:
            metrics = self.score("mine", self.own("cat", "cow", "dog"))
        self.assertIn("mine has no boxes of cow: ", logs.output[0])
        for key in ("AP", "AP50", "AP75", "AP-cat", "AP-dog"):
            self.assertAlmostEqual(metrics[key], 100, msg=key)
        self.assertNotIn("AP-cow", metrics)

    @parameterized.parameters(2007, 2012)
    def test_perfect_predictions_by_vocs_rules_score_100(self, year: int) -> None:
        for number in range(3):
            self.annotate(number, ("cat", 0, 1, 1, 30, 20), ("dog", number % 2, 40, 9, 80, 60))
        self.annotate(2, ("cow", 1, 40, 1, 80, 60))
        evaluator = self.official("cat", "cow", "dog", "pig", year=year)
        with self.assertLogs("jigclu.detection.evaluators") as logs:
            metrics = self.score("mine", evaluator)
        self.assertIn("mine has no boxes of cow, pig: the mean leaves", logs.output[0])
        for key in ("AP", "AP50", "AP75", "AP-cat", "AP-dog"):
            self.assertAlmostEqual(metrics[key], 100, msg=key)
        self.assertNotIn("AP-cow", metrics)

    def test_official_data_may_have_spaces_fractions_and_missing_fields(self) -> None:
        self.annotate(0, ("cat", 0, 2.5, 1.25, 30.5, 20.75))
        path = self.folder / "Annotations/0.xml"
        text = path.read_text(encoding="utf-8")
        for field in ("pose", "truncated", "difficult"):
            text = re.sub(f"<{field}>.*?</{field}>", "", text)
        path.write_text(text, encoding="utf-8")
        evaluator = self.official("cat", "dog")
        self.assertIsInstance(evaluator, VocEvaluator)
        metrics = self.score("mine", evaluator)
        # detectron2 rounds predictions to a tenth of a pixel.
        self.assertAlmostEqual(metrics["AP-cat"], 100)
        self.assertAlmostEqual(metrics["AP-dog"], 100)

    @parameterized.product(year=(2007, 2012), seed=(0, 1, 2))
    def test_random_predictions_get_detectron2s_scores(self, year: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in range(3):
            self.annotate(number, *(_random_object(random) for _ in range(6)))
        ours = self.official("cat", "dog", year=year)
        theirs = PascalVOCDetectionEvaluator("mine")
        for evaluator in (ours, theirs):
            evaluator.reset()
        for record in DatasetCatalog.get("mine"):
            found = instances(record, record["annotations"] * 2)
            found.pred_boxes.tensor += torch.tensor(random.normal(0, 3, (12, 4)))
            found.scores = torch.tensor(random.random(12))
            for evaluator in (ours, theirs):
                evaluator.process([record], [{"instances": found}])
        found, expected = ours.evaluate()["bbox"], theirs.evaluate()["bbox"]
        for key, value in expected.items():
            self.assertAlmostEqual(found[key], value, msg=key)
        self.assertBetween(found["AP"], 5, 95)

    def test_vocs_rules_give_detectron2s_scores(self) -> None:
        for number in range(3):
            self.annotate(number, ("cat", 0, 1, 1, 30, 20), ("dog", 0, 40, 9, 80, 60))
        ours = self.official("cat", "dog")
        theirs = PascalVOCDetectionEvaluator("mine")
        for evaluator in (ours, theirs):
            # The dog of the first image is found too far left, that of the last one not at all.
            shift = [torch.tensor(edges) for edges in ([0.0] * 4, [-4.0, 0, -4, 0])]
            evaluator.reset()
            for record in DatasetCatalog.get("mine")[:2]:
                found = instances(record, record["annotations"])
                found.pred_boxes.tensor[1] += shift[record["image_id"] == "0"]
                evaluator.process([record], [{"instances": found}])
        found, expected = ours.evaluate()["bbox"], theirs.evaluate()["bbox"]
        for key, value in expected.items():
            self.assertAlmostEqual(found[key], value, msg=key)
        self.assertBetween(found["AP"], 20, 80)
        self.assertAlmostEqual((found["AP-cat"] + found["AP-dog"]) / 2, found["AP"])


if __name__ == "__main__":
    absltest.main()
