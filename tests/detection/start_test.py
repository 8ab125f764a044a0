"""Tests of the scripts in detection/ without detectron2."""

import subprocess
import sys
from pathlib import Path

from absl.testing import absltest, parameterized

DETECTION = Path(__file__).parents[2] / "detection"


class ScriptsTest(parameterized.TestCase):
    @parameterized.parameters("train_net", "predict")
    def test_error_says_how_to_install_detectron2(self, script: str) -> None:
        program = (
            "import runpy, sys; sys.modules['detectron2'] = None; sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        flags = ("--config-file", str(DETECTION / "configs" / "R50-JigClu.yaml"))
        run = subprocess.run(
            [sys.executable, "-c", program, str(DETECTION / f"{script}.py"), *flags],
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
