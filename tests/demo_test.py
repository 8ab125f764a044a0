"""The first steps of the demo, on this CPU and restricted to AVX2."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from absl.testing import absltest

from jigclu import config
from jigclu.training import checkpoint

# Limits ATen and oneDNN to the instructions of a CPU without AVX-512.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


class DemoTest(absltest.TestCase):
    def first_steps(self, *bindings: str, **environment: str) -> tuple[str, str]:
        """Runs two steps; returns what was printed, and the precision in the checkpoint."""
        workdir = self.create_tempdir().full_path
        overrides = (
            "schedule.stop_after_steps=2",
            "pretrain.evaluators=()",
            "reporting.log_every=1",
            *bindings,
        )
        done = subprocess.run(
            (
                *(sys.executable, "-m", "jigclu.launch", "--gin_file=gin/demo.gin"),
                *(f"--gin_bindings={binding}" for binding in overrides),
                f"--workdir={workdir}",
            ),
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
            cwd=config.ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        path = checkpoint.latest(Path(workdir))
        assert path is not None
        contents = checkpoint.load(path, "cpu")
        self.assertEqual(contents["step"], 2)
        for value in contents["parameters"].values():
            self.assertTrue(torch.isfinite(value).all())
        return done.stderr, contents["machine"]["precision"][0]

    def test_trains_in_the_planned_precision(self) -> None:
        printed, precision = self.first_steps()
        self.assertIn(f"  precision: {precision} (", printed)
        self.assertIn("step 2/2  loss ", printed)
        self.assertNotIn("warning", printed.lower())

    @absltest.skipUnless(platform.machine() == "x86_64", "only x86 has these instruction sets")
    def test_uses_float32_on_a_cpu_without_bfloat16(self) -> None:
        small = ("pretrain.batch_size=16", "loading.workers=0")  # In half the time.
        printed, precision = self.first_steps(*small, **AVX2)
        self.assertEqual(precision, "float32")
        self.assertIn("precision: float32 (this CPU has neither avx512_bf16 nor AMX)", printed)
        self.assertIn("compile: False (eager steps are as fast on a CPU)", printed)


if __name__ == "__main__":
    absltest.main()
