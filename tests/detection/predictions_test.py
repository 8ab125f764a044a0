"""Tests of jigclu.detection.predictions."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from absl.testing import absltest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from jigclu.detection import predictions
from jigclu.detection.own_data import OwnData
from jigclu.detection.pictures import Shape
from tests.detection.command_case import write_voc
from tests.folder_case import FolderTestCase


def forget(name: str) -> None:
    """Removes a registered data set."""
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


class PredictedShapesTest(absltest.TestCase):
    def test_detectors_need_not_predict_masks(self) -> None:
        found = Instances(
            (60, 80),
            pred_boxes=Boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0]])),
            scores=torch.tensor([0.75]),
            pred_classes=torch.tensor([3]),
        )
        self.assertEqual(predictions.predicted_shapes(found), [Shape((1, 2, 30, 40), 3, 0.75)])
        masks = torch.rand(1, 60, 80) > 0.5
        found.pred_masks = masks
        (shape,) = predictions.predicted_shapes(found)
        np.testing.assert_array_equal(shape.mask, masks[0].numpy())


class AnnotatedShapesTest(FolderTestCase):
    def test_boxes_polygons_and_crowds_are_read(self) -> None:
        # Compressed run lengths: 4 columns of 6 pixels off, one on, and the rest off.
        counts = {"size": [6, 8], "counts": b"h06b0"}
        boxes = [
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
            | {"segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]},
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
            | {"segmentation": counts, "iscrowd": 1},
        ]
        record = {"height": 6, "width": 8, "annotations": boxes}
        first, second = predictions.annotated_shapes(record, with_masks=True)
        self.assertEqual(
            (first.box, first.class_number, first.is_ignored), ((1, 2, 4, 6), 0, False)
        )
        self.assertEqual(
            (second.box, second.class_number, second.is_ignored), ((1, 2, 3, 4), 1, True)
        )
        expected = np.zeros((6, 8), dtype=bool)
        expected[2:6, 1:4] = True
        np.testing.assert_array_equal(first.mask, expected)
        expected = np.zeros((6, 8), dtype=bool)
        expected[:, 4] = True
        np.testing.assert_array_equal(second.mask, expected)
        for shape in predictions.annotated_shapes(record, with_masks=False):
            self.assertIsNone(shape.mask)
            self.assertIsNone(shape.score)

    def test_difficult_objects_are_marked_as_ignored(self) -> None:
        write_voc(self.folder)
        path = self.folder / "Annotations/1.xml"
        text = path.read_text(encoding="utf-8").replace("<difficult>0", "<difficult>1")
        path.write_text(text, encoding="utf-8")
        OwnData([], [["mine", str(self.folder), "train"]], ["cat", "dog"]).register()
        self.addCleanup(forget, "mine")
        shapes = [
            predictions.annotated_shapes(record, with_masks=False)
            for record in DatasetCatalog.get("mine")
        ]
        self.assertEqual([shape.is_ignored for (shape,) in shapes], [False, True])


class EmptyDetector(nn.Module):
    """Finds nothing."""

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        size = inputs[0]["height"], inputs[0]["width"]
        nothing = {"scores": torch.zeros(0), "pred_classes": torch.zeros(0, dtype=torch.long)}
        return [{"instances": Instances(size, pred_boxes=Boxes(torch.zeros(0, 4)), **nothing)}]


class DrawTest(FolderTestCase):
    def test_images_of_several_folders_may_share_a_name(self) -> None:
        names = ("a/0.png", "b/0.png", "b/0.jpg")
        for name in names:
            (self.folder / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (1, 1)).save(self.folder / name)
        records = [
            {"file_name": str(self.folder / name), "height": 1, "width": 1, "annotations": []}
            for name in names
        ]
        DatasetCatalog.register("mine", lambda: records)
        self.addCleanup(forget, "mine")
        MetadataCatalog.get("mine").thing_classes = ["cat"]
        cfg = get_cfg()
        cfg.DATASETS.TEST = ("mine",)
        cfg.OUTPUT_DIR = str(self.folder / "run")
        folder = self.folder / "pictures"
        predictions.draw(cfg, EmptyDetector(), folder, images=8, step=5, score=0.5)
        found = sorted(path.name for path in folder.iterdir())
        self.assertEqual(found, ["1_0.png", "2_0.png", "3_0.png"])
        events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
        self.assertEqual(events.Tags()["images"], [f"predictions/{name[:3]}" for name in found])


class PackagesTest(absltest.TestCase):
    def test_needs_only_packages_that_detectron2_installs(self) -> None:
        program = (
            "import sys; sys.modules.update({'cv2': None, 'pkg_resources': None}); "
            "import jigclu.detection.command; print('detectron2.model_zoo' in sys.modules)"
        )
        printed = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        self.assertEqual(printed.stdout.strip(), "False", printed.stderr)


if __name__ == "__main__":
    absltest.main()
