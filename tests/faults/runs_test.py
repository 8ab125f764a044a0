"""Faults of whole runs: divergence, bad steps, a second run, and a full disk."""

import shutil
import subprocess
import sys
import time
import unittest
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.system.errors import UserError
from jigclu.system.workdir_lock import locked
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import checkpoint
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from tests.faults.checkpoints_test import start
from tests.faults.slow import SLOW
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task

TASK = with_settings(PRETRAINING, every=1, keep_last=2, keep_every=0, log_every=100)
# The disk of a run in this script becomes full while it trains, and has room again later.
_FULL_DISK = """
import sys
from pathlib import Path
from jigclu.training import loop
from tests.faults.runs_test import TASK
from jigclu.training.settings import with_settings

workdir = Path(sys.argv[1])
task = with_settings(TASK, every=12, keep_last=1, log_every=1, picture_every=1, epochs=4)
_due = loop._due

def due(evaluations, step, task):
    if step == 3:
        with open(workdir / "filling", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                print(error)
    if step == 9:
        (workdir / "filling").unlink()
    return _due(evaluations, step, task)

loop._due = due
task.run(workdir, "")
"""


class DivergenceTest(TaskTestCase):
    @parameterized.parameters(1e2, 1e4, 1e8, 1e30)
    def test_every_checkpoint_of_a_diverging_run_is_finite(self, learning_rate: float) -> None:
        run_task(with_settings(TASK, stop_after_steps=1), self.folder)
        try:
            run_task(with_settings(TASK, learning_rate=learning_rate), self.folder)
        except UserError as error:
            self.assertRegex(str(error), "not finite|is nan|is inf")
            self.assertNotIn("float32", str(error))
        paths = list((self.folder / "checkpoints").iterdir())
        self.assertNotEmpty(paths)
        for path in paths:
            contents = checkpoint.load(path, "cpu")
            tensors = [
                contents["parameters"],
                contents["buffers"],
                contents["optimizer"]["momentum"],
            ]
            for name, value in [item for part in tensors for item in part.items()]:
                self.assertTrue(value.isfinite().all(), f"{path.name} {name}")

    @unittest.skipUnless(SLOW, "slow")
    def test_bad_steps_of_a_real_run_are_skipped(self) -> None:
        take_step = PretrainTask.take_step

        def overflow(
            task: PretrainTask, step: TrainingStep, state: TrainState, *arguments: Any
        ) -> StepResult:
            scale = state.loss_scale
            if state.step in (2, 3):
                state = state._replace(loss_scale=torch.tensor(torch.inf))
            result = take_step(task, step, state, *arguments)
            return result._replace(state=result.state._replace(loss_scale=scale))

        with mock.patch.object(PretrainTask, "take_step", overflow):
            printed = run_task(with_settings(TASK, bad_steps=2), self.folder)
            self.assertIn("warning: step 4 was skipped: gradient_norm is ", printed)
            self.assertEqual(final(self.folder)["step"], 6)
            self.assertEqual(final(self.folder)["optimizer"]["updates"], 4)
            with self.assertRaisesRegex(UserError, "at step 4, bad step 2 in a row; lower"):
                run_task(with_settings(TASK, bad_steps=1), self.folder / "fewer")
        self.assertEqual(final(self.folder / "fewer")["step"], 3)


def _hold(workdir: Path) -> None:
    with locked(workdir):
        (workdir / "ready").touch()
        time.sleep(600)


class SecondRunTest(TaskTestCase):
    def test_second_run_in_a_workdir_is_rejected_and_changes_nothing(self) -> None:
        process = start(_hold, self.folder)
        try:
            while not (self.folder / "ready").exists():
                self.assertTrue(process.is_alive())
                time.sleep(0.01)
            (self.folder / "config.gin").write_text("of the first run")
            run = partial(config.load(["gin/demo.gin"], []).run, self.folder)
            with self.assertRaisesRegex(UserError, f"in use by process {process.pid} on "):
                run()
        finally:
            process.kill()
            process.join()
        self.assertEqual((self.folder / "config.gin").read_text(), "of the first run")
        self.assertFalse((self.folder / "checkpoints").exists())


def _can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("unshare"))
        and subprocess.run(command, capture_output=True).returncode == 0
    )


class FullDiskTest(TaskTestCase):
    def test_a_full_disk_between_checkpoints_does_not_stop_the_run(self) -> None:
        if not (SLOW and _can_mount()):
            self.skipTest("slow, or user namespaces are disabled")
        script = f'mount -t tmpfs -o size=300m none "$0"; exec {sys.executable} -c "$1" "$0"'
        command = ["unshare", "-rm", "sh", "-c", script, str(self.folder), _FULL_DISK]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("No space left", done.stdout)
        self.assertEqual(done.stderr.count("training continues"), 1, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertIn("done: 12 steps", done.stderr)


if __name__ == "__main__":
    absltest.main()
