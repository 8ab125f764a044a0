"""Packing that is stopped or killed ends with one line, and leaves no process behind."""

import os
import signal
import sys
import time
from pathlib import Path

from absl.testing import absltest

from jigclu.config import ROOT
from tests.faults.run_case import Run
from tests.folder_case import FolderTestCase
from tests.launch_test import bindings

_SHARDS = (
    "pack.source=@ProceduralImages()",
    "ProceduralImages.images=100000",
    "ProceduralImages.size=64",
    "ProceduralImages.seed=0",
    "ProceduralImages.split='train'",
    "pack.workers=2",
    "pack.images_per_shard=5",
)
_SECONDS = 240


def is_running(pid: int) -> bool:
    """Returns whether a process exists and has not ended, whoever is to collect its status."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class PackingTest(FolderTestCase):
    def start(self) -> Run:
        """Starts to pack minutes of images with two workers, and waits for the first shard."""
        flags = [f"--gin_file={ROOT / 'gin/pack.gin'}", f"--workdir={self.folder / 'pack'}"]
        command = [sys.executable, "-m", "jigclu.launch", *flags, *bindings(*_SHARDS)]
        run = Run(command, self.folder, self.folder / "log")
        self.addCleanup(run.end)
        deadline = time.monotonic() + _SECONDS
        while not list(self.folder.glob("pack/shard_*.json")):
            self.assertIsNone(run.process.poll(), run.printed)
            self.assertLess(time.monotonic(), deadline, run.printed)
            time.sleep(0.05)
        return run

    def assert_ended(self, processes: list[int]) -> None:
        """Fails if any process is still running in 10 seconds."""
        deadline = time.monotonic() + 10
        while left := [pid for pid in processes if is_running(pid)]:
            self.assertLess(time.monotonic(), deadline, f"processes {left} are still running")
            time.sleep(0.1)

    def test_a_killed_worker_is_reported(self) -> None:
        run = self.start()
        os.kill(run.workers()[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 2, run.printed)
        self.assertRegex(run.printed, r"error: a worker process ended after \d+ shards, perhaps")
        self.assertNotIn("Traceback", run.printed)

    def test_sigterm_to_all_processes_stops_in_order(self) -> None:
        run = self.start()
        processes = run.tree()[1:]
        os.killpg(run.process.pid, signal.SIGTERM)
        self.assertEqual(run.wait(), 143, run.printed)
        self.assertIn("finished shards are kept", run.printed)
        self.assertNotIn("Traceback", run.printed)
        self.assert_ended(processes)

    def test_workers_end_with_a_killed_run(self) -> None:
        run = self.start()
        processes = run.tree()[1:]
        self.assertLen(run.workers(), 2)
        run.send(signal.SIGKILL)
        run.process.wait()
        self.assert_ended(processes)


if __name__ == "__main__":
    absltest.main()
