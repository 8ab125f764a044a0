"""Whole runs on two ranks with worker processes, killed at random moments, resume bit by bit."""

import os
import random
import signal
import time
import unittest
from contextlib import suppress
from typing import Any

from absl.testing import absltest

from jigclu.training import checkpoint
from tests.faults.run_case import Run, RunTestCase
from tests.faults.slow import SLOW
from tests.small_tasks import TaskTestCase, final

_STEPS = 40
_KILLS = 4


@unittest.skipUnless(SLOW, "slow")
class KillsTest(RunTestCase, TaskTestCase):
    def train(self, name: str) -> Run:
        """Starts a run on two ranks with two worker processes each."""
        self.workdir = self.folder / name
        settings = ("loading.workers=2", "saving.every=2", f"schedule.stop_after_steps={_STEPS}")
        return self.start(*settings, ranks=2)

    def kill(self, run: Run) -> None:
        """Kills all processes of a run at once."""
        for pid in run.tree():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()

    def newest(self) -> int:
        """Returns the step of the last checkpoint of the run."""
        path = checkpoint.latest(self.workdir)
        return 0 if path is None else checkpoint.peek(path)["step"]

    def result(self, name: str) -> dict[str, Any]:
        self.assertEqual(self.train(name).wait(), 0)
        return final(self.workdir)

    def test_two_ranks_with_workers_resume_to_the_same_bits(self) -> None:
        whole = self.result("whole")
        moments = random.Random(0)
        for _ in range(_KILLS):
            run = self.train("killed")
            before = self.newest()
            while self.newest() == before and run.process.poll() is None:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.3))
            self.assertIsNone(run.process.poll(), "the run has ended before it was killed")
            self.kill(run)
        self.assertLess(self.newest(), _STEPS)
        self.assert_same_training(self.result("killed"), whole)


if __name__ == "__main__":
    absltest.main()
