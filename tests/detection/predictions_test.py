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


class DrawnTest(absltest.TestCase):
    def test_edges_are_in_the_color_of_the_class_and_all_else_stays(self) -> None:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        found = _instances([[10, 10, 70, 50], [10, 52, 70, 58]], [0.9, 0.4], [0, 1])
        picture = predictions.drawn(image, found, ("cat", "dog"))
        self.assertEqual(picture.dtype, torch.uint8)
        red, cyan = [255, 51, 51], [51, 255, 255]
        self.assertEqual(picture[:, 49, 40].tolist(), red)
        self.assertEqual(picture[:, 57, 69].tolist(), cyan)
        # Beside the label, and outside of both.
        self.assertFalse(picture[:, 30:48, 20:60].any())
        self.assertFalse(picture[:, :9].any())
        self.assertFalse(image.any())

    def test_the_surest_twenty_are_drawn(self) -> None:
        image = torch.zeros(3, 60, 80, dtype=torch.uint8)
        boxes = [[5.0, 50.0, 75.0, 58.0]] + [[5.0, 5.0, 20.0, 40.0]] * 20
        picture = predictions.drawn(
            image, _instances(boxes, [0.1] + [0.5] * 20, [0] * 21), ("cat",)
        )
        self.assertFalse(picture[:, 45:].any())

    def test_nothing_found(self) -> None:
        image = torch.ones(3, 60, 80, dtype=torch.uint8)
        self.assertTrue(torch.equal(predictions.drawn(image, _instances([], [], []), ()), image))


class PackagesTest(absltest.TestCase):
    def test_what_detectron2_does_not_install_is_not_needed(self) -> None:
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
