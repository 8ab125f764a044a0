"""Tests of jigclu.detection.predictions."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import subprocess
import sys

import torch
from absl.testing import absltest
from detectron2.structures import Boxes, Instances

from jigclu.detection import predictions


def _instances(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Instances:
    return Instances(
        (60, 80),
        pred_boxes=Boxes(torch.tensor(boxes).view(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


class DrawBoxesTest(absltest.TestCase):
    def test_draws_edges_in_class_colors_and_nothing_else(self) -> None:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        found = _instances([[10, 10, 70, 50], [10, 52, 70, 58]], [0.9, 0.4], [0, 1])
        picture = predictions.draw_boxes(image, found, ("cat", "dog"))
        self.assertEqual(picture.dtype, torch.uint8)
        red, cyan = [255, 51, 51], [51, 255, 255]
        self.assertEqual(picture[:, 49, 40].tolist(), red)
        self.assertEqual(picture[:, 57, 69].tolist(), cyan)
        # Inside the box beside its label, and outside both boxes.
        self.assertFalse(picture[:, 30:48, 20:60].any())
        self.assertFalse(picture[:, :9].any())
        self.assertFalse(image.any())

    def test_draws_the_twenty_highest_scores(self) -> None:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        boxes = [[5.0, 50.0, 75.0, 58.0]] + [[5.0, 5.0, 20.0, 40.0]] * 20
        picture = predictions.draw_boxes(
            image, _instances(boxes, [0.1] + [0.5] * 20, [0] * 21), ("cat",)
        )
        self.assertFalse(picture[:, 45:].any())

    def test_image_without_predictions_is_unchanged(self) -> None:
        image = torch.ones(3, 60, 80, dtype=torch.uint8)
        self.assertTrue(
            torch.equal(predictions.draw_boxes(image, _instances([], [], []), ()), image)
        )


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
