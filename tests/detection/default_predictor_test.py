"""Tests that detection/README.md's example reads a run with detectron2's DefaultPredictor."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from absl.testing import absltest, parameterized

from tests.detection.command_case import SHORT, CommandTestCase

README = Path(__file__).parents[2] / "detection" / "README.md"


class DefaultPredictorTest(CommandTestCase):
    @parameterized.parameters(
        ("coco-mask-R50-C4-1x-MoCo", "pred_masks"), ("coco-RetinaNet-R50-FPN-1x", "pred_boxes")
    )
    def test_readme_example_predicts(self, config: str, field: str) -> None:
        self.add_masks()
        status, _, errors = self.on_coco(
            *("--images-per-batch", "1", "--schedule-as-given"),
            config=config,
            pairs=(*SHORT.split(), "MODEL.RESNETS.DEPTH", "50"),
        )
        self.assertEqual(status, 0, errors)
        (example,) = re.findall(
            "```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        folder = self.folder / "elsewhere"
        (folder / "runs").mkdir(parents=True)
        shutil.move(self.output, folder / "runs" / "voc-R50-C4-MoCo")
        shutil.move(self.folder / "0.png", folder / "image.jpg")
        program = f"{example}\nprint(instances.{field}.device, instances.image_size)"
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stdout.splitlines()[-1], "cpu (48, 64)")


if __name__ == "__main__":
    absltest.main()
