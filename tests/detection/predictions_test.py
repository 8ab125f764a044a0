"""Tests of jigclu.detection.predictions."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import subprocess
import sys

import numpy as np
import torch
from absl.testing import absltest
from detectron2.structures import Boxes, BoxMode, Instances

from jigclu.detection import predictions
from jigclu.detection.pictures import Shape


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


class AnnotatedShapesTest(absltest.TestCase):
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
        self.assertEqual((first.box, first.class_number, first.is_crowd), ((1, 2, 4, 6), 0, False))
        self.assertEqual(
            (second.box, second.class_number, second.is_crowd), ((1, 2, 3, 4), 1, True)
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
