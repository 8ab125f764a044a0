"""Packing whose processes are killed: it ends with one line, and leaves no process behind."""

import os
import signal
import sys
import time

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
    "pack.images_per_shard=500",
)


class PackingTest(FolderTestCase):
    def start(self) -> Run:
        """Starts to pack minutes of images with two workers, and waits for the first shard."""
        flags = [f"--gin_file={ROOT / 'gin/pack.gin'}", f"--workdir={self.folder / 'pack'}"]
        command = [sys.executable, "-m", "jigclu.launch", *flags, *bindings(*_SHARDS)]
        run = Run(command, self.folder, self.folder / "log")
        self.addCleanup(run.end)
        while not list(self.folder.glob("pack/shard_*.json")):
            self.assertIsNone(run.process.poll(), run.printed)
            time.sleep(0.05)
        return run

    def test_a_killed_worker_is_reported(self) -> None:
        run = self.start()
        os.kill(run.workers()[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 2, run.printed)
        self.assertRegex(run.printed, r"error: a worker process was killed after \d+ shards")
        self.assertNotIn("Traceback", run.printed)

    def test_workers_end_with_a_killed_run(self) -> None:
        run = self.start()
        processes = run.tree()[1:]
        self.assertLen(run.workers(), 2)
        run.send(signal.SIGKILL)
        run.process.wait()
        deadline = time.monotonic() + 10
        while left := [pid for pid in processes if os.path.exists(f"/proc/{pid}")]:
            self.assertLess(time.monotonic(), deadline, f"processes {left} are still running")
            time.sleep(0.1)


if __name__ == "__main__":
    absltest.main()
