"""Tests of detection/train_net.py without detectron2."""

import subprocess
import sys
from pathlib import Path

from absl.testing import absltest, parameterized

DETECTION = Path(__file__).parents[2] / "detection"


class TrainNetTest(parameterized.TestCase):
    @parameterized.parameters("R50-JigClu", "voc-R50-JigClu")
    def test_error_says_how_to_install_detectron2(self, config: str) -> None:
        program = (
            "import runpy, sys; sys.modules['detectron2'] = None; sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        flags = ("--config-file", str(DETECTION / "configs" / f"{config}.yaml"))
        run = subprocess.run(
            [sys.executable, "-c", program, str(DETECTION / "train_net.py"), *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(run.returncode, 2)
        self.assertRegex(
            run.stderr, "^error: detectron2 is not installed: .* pip install --no-build-isolation "
        )
        self.assertLen(run.stderr.splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
