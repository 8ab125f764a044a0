"""A long run with everything on: its processes do not grow."""

import os
import re
import statistics
import time
import unittest
from pathlib import Path
from typing import NamedTuple

from absl.testing import absltest

from tests.faults.run_case import Run, RunTestCase
from tests.faults.slow import SLOW

_STEPS = 2000
# Between these steps usage is compared: everything has happened several times before.
_FIRST, _LAST = (_STEPS // 8, _STEPS * 3 // 8), (_STEPS * 3 // 4, _STEPS)
_GROWTH = 0.03  # Of the memory, as a share; Python's and C's allocators fluctuate so much.
_SECONDS = 0.5  # Between samples.


class Usage(NamedTuple):
    """What the processes of a run use at a moment.

    step: last step that the run has reported.
    memory: resident bytes, summed over processes. Proportional sizes would change when other
      programs that share torch's libraries start or end.
    files: open files.
    threads: of all processes.
    """

    step: int
    memory: int
    files: int
    threads: int


def _number(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _sample(run: Run) -> Usage | None:
    """Returns the usage of a run, or None while processes start or end."""
    reported = re.findall(r"step (\d+)/", run.printed)
    memory = files = threads = 0
    try:
        processes = run.tree()
        for pid in processes:
            process = Path(f"/proc/{pid}")
            files += len(os.listdir(process / "fd"))
            status = (process / "status").read_text()
            memory += 1024 * _number(status, "VmRSS")
            threads += _number(status, "Threads")
        if not reported or processes != run.tree():
            return None
    except OSError:
        return None
    return Usage(int(reported[-1]), memory, files, threads)


@unittest.skipUnless(SLOW, "slow")
class SoakTest(RunTestCase):
    def test_memory_files_and_threads_are_flat(self) -> None:
        run = self.start(
            f"schedule.stop_after_steps={_STEPS}",
            "pretrain.evaluators=(@knn_evaluator(),)",
            "knn_evaluator.every=10",  # Epochs of 3 steps.
            "ProceduralImages.size=16",
            "jigsaw.patch_size=8",
            "eval_transform.resize=16",
            "eval_transform.crop=16",
            "pretrain.learning_rate=0.001",  # Does not diverge with so few images.
            "loading.workers=1",
            "reporting.log_every=5",
            "reporting.picture_every=10",
            "saving.every=100",
            "saving.keep_last=2",
        )
        samples: list[Usage] = []
        while run.process.poll() is None:
            usage = _sample(run)
            if usage is not None:
                samples.append(usage)
            time.sleep(_SECONDS)
        self.assertEqual(run.process.returncode, 0, run.printed)
        first, last = (
            [usage for usage in samples if low <= usage.step < high]
            for low, high in (_FIRST, _LAST)
        )
        self.assertGreater(min(len(first), len(last)), 20)
        before, after = map(_median, (first, last))
        print(f"\nmemory {before.memory / 1e6:.1f} -> {after.memory / 1e6:.1f} MB, ", end="")
        print(f"files {before.files} -> {after.files}, threads {before.threads} -> {after.threads}")
        self.assertLess(after.memory, (1 + _GROWTH) * before.memory)
        self.assertLessEqual(after.files, before.files)
        self.assertLessEqual(after.threads, before.threads)


def _median(samples: list[Usage]) -> Usage:
    return Usage(*(int(statistics.median(values)) for values in zip(*samples, strict=True)))


if __name__ == "__main__":
    absltest.main()
