"""Signals to real runs: they stop after the same step, with a checkpoint."""

import os
import signal
import unittest

from absl.testing import absltest, parameterized

from tests.faults.run_case import Run, RunTestCase
from tests.faults.slow import SLOW
from tests.small_tasks import final


class SignalsTestCase(RunTestCase):
    def assert_stopped(self, run: Run, name: str) -> int:
        """Checks messages and checkpoint of a run, which has ended; returns its step."""
        step = int(final(self.workdir)["step"])
        path = self.workdir / "checkpoints" / f"step_{step:08d}.pt"
        self.assertIn(f"stopped at step {step} of 3000; the same command resumes", run.printed)
        self.assertIn(f"stopped by {name}; the same command resumes from {path}\n", run.printed)
        self.assertNotIn("error:", run.printed)
        return step


class SignalsTest(SignalsTestCase):
    def test_sigterm_saves_and_exits_with_143_and_the_run_resumes(self) -> None:
        run = self.start("loading.workers=1")
        run.wait_for("step 2/")
        # As a scheduler does: workers receive the signal, too.
        os.killpg(run.process.pid, signal.SIGTERM)
        self.assertEqual(run.wait(), 143, run.printed)
        self.assertNotIn("Traceback", run.printed)
        step = self.assert_stopped(run, "SIGTERM")
        self.assertIn(
            "\nStopped by a signal; the same command continues.\n",
            (self.workdir / "report.md").read_text(),
        )

        run = self.start(f"schedule.stop_after_steps={step + 1}")
        self.assertEqual(run.wait(), 0, run.printed)
        self.assertIn(f"at step {step}\n", run.printed)

    @unittest.skipUnless(SLOW, "slow")
    def test_before_the_first_checkpoint_a_signal_says_that_there_is_none(self) -> None:
        run = self.start()
        run.wait_for("machine:")
        run.send(signal.SIGINT)
        self.assertEqual(run.wait(), 130, run.printed)
        self.assertIn("stopped by SIGINT; this run has saved no checkpoint, so the", run.printed)
        self.assertNotIn("Traceback", run.printed)


@unittest.skipUnless(SLOW, "slow")
class RanksTest(SignalsTestCase, parameterized.TestCase):
    @parameterized.parameters("SIGTERM", "SIGINT", "SIGHUP")
    def test_signal_to_torchrun_stops_all_ranks(self, name: str) -> None:
        run = self.start("loading.workers=1", ranks=2)
        run.wait_for("step 2/")
        run.send(signal.Signals[name])
        self.assertNotEqual(run.wait(), 0)
        self.assert_stopped(run, name)

    @parameterized.parameters(0, 1)
    def test_signal_to_one_rank_stops_all_ranks(self, rank: int) -> None:
        run = self.start(ranks=2)
        run.wait_for("step 2/")
        os.kill(run.children()[rank], signal.SIGTERM)
        self.assertNotEqual(run.wait(), 0)
        self.assert_stopped(run, "SIGTERM" if rank == 0 else "a signal to another rank")
        self.assertEqual(run.printed.count("exitcode  : 143"), 2)

    def test_the_end_of_torchrun_stops_all_ranks(self) -> None:
        run = self.start(ranks=2)
        run.wait_for("step 2/")
        run.send(signal.SIGKILL)
        run.wait()
        run.wait_for("stopped by")
        self.assert_stopped(run, "SIGTERM, because torchrun has ended")


if __name__ == "__main__":
    absltest.main()
