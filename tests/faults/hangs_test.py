"""Ranks and workers that are killed or stopped: the run ends or restarts instead of waiting."""

import os
import signal
import subprocess
import sys
import unittest
from unittest import mock

from absl.testing import absltest

from jigclu.data.loader import _worker_failure
from jigclu.system.device import _describe_lost, _reports
from tests.faults.run_case import RunTestCase
from tests.faults.slow import SLOW


class MessagesTest(absltest.TestCase):
    def test_lost_ranks_are_named(self) -> None:
        self.assertStartsWith(_describe_lost({0: "lost"}, 3, "x"), "rank 1, 2 does not respond")
        self.assertStartsWith(_describe_lost({0: "lost", 1: "failed"}, 2, "x"), "rank 1 failed; ")
        self.assertIn("lost their connections (x)", _describe_lost({}, 2, "x"))

    def test_a_store_that_ended_with_rank_0_or_torchrun(self) -> None:
        store = mock.Mock(check=mock.Mock(side_effect=RuntimeError))
        for value, message in {"False": "^rank 0 does not respond", "True": "torchrun$"}.items():
            with mock.patch.dict(os.environ, TORCHELASTIC_USE_AGENT_STORE=value):
                self.assertRegex(_describe_lost(_reports(store, 2), 2, "x"), message)

    def test_failures_of_workers_are_told_apart(self) -> None:
        errors = {
            "DataLoader timed out after 5 seconds": "no batch for 5 seconds: .*loading.timeout",
            "DataLoader worker (pid(s) 7) exited unexpectedly": "process 7 was killed.*memory",
            "unable to allocate shared memory(shm) for file </torch_1_2>": "/dev/shm.*--shm-size",
            "unable to write to file </torch_1>: No space left on device (28)": "/dev/shm, which",
        }
        for error, message in errors.items():
            self.assertRegex(_worker_failure(RuntimeError(error), 5, []) or "", message)
        broken = _worker_failure(ConnectionResetError(104, "Connection reset by peer"), 5, [])
        self.assertStartsWith(broken or "", "a worker process was killed, perhaps")
        self.assertIsNone(_worker_failure(RuntimeError("mat1 and mat2 shapes"), 5, []))


@unittest.skipUnless(SLOW, "slow")
class HangsTest(RunTestCase):
    def test_a_killed_rank_is_restarted_and_the_run_resumes(self) -> None:
        run = self.start("saving.every=2", ranks=2, torchrun=("--max-restarts=2",))
        run.wait_for("step 3/")
        os.kill(run.children()[1], signal.SIGKILL)
        run.wait_for(r"(?s)resumed from .*step 7/")
        run.send(signal.SIGTERM)
        run.wait()
        self.assertNotIn("did not meet", run.printed)

    def test_a_stopped_rank_is_named(self) -> None:
        run = self.start("compute.rank_timeout=20", ranks=2)
        run.wait_for("step 2/")
        os.kill(run.children()[1], signal.SIGSTOP)
        self.assertNotEqual(run.wait(), 0)
        self.assertIn("error: rank 1 does not respond: ", run.printed)

    def test_a_killed_worker_is_reported(self) -> None:
        run = self.start("loading.workers=2")
        run.wait_for("step 2/")
        os.kill(run.workers()[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 2, run.printed)
        self.assertRegex(
            run.printed, r"error: (worker process \d+|a worker process) was killed, perhaps because"
        )
        self.assertNotIn("Traceback", run.printed)

    def test_a_stopped_worker_is_reported_after_the_timeout(self) -> None:
        run = self.start("loading.workers=2", "loading.timeout=60")
        run.wait_for("step 2/")
        os.kill(run.workers()[0], signal.SIGSTOP)
        self.assertEqual(run.wait(), 2, run.printed)
        self.assertRegex(run.printed, r"error: worker process \d+ was stopped, and delivered no")
        self.assertNotIn("Traceback", run.printed)

    @unittest.skipUnless(
        sys.platform == "linux"
        and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0,
        "only root can replace /dev/shm",
    )
    def test_too_little_shared_memory_is_reported(self) -> None:
        mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
        run = self.start("loading.workers=1", prefix=("unshare", "-m", "sh", "-c", mount, "sh"))
        self.assertEqual(run.wait(), 2, run.printed)
        self.assertRegex(run.printed, "error: .*/dev/shm, which has 0.1 MiB, is full: enlarge it")
        self.assertNotIn("Traceback", run.printed)


if __name__ == "__main__":
    absltest.main()
