"""Faults of checkpoint files: kills inside a save, flipped bits, truncation, full disks, code."""

import contextlib
import itertools
import multiprocessing
import random
import resource
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.training import checkpoint
from jigclu.training.settings import with_settings
from tests.faults.payloads import PAYLOADS, Payload
from tests.faults.slow import SLOW
from tests.folder_case import FolderTestCase
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task
from tests.training.checkpoint_contents_test import contents

TASK = with_settings(PRETRAINING, every=1, keep_last=2, keep_every=0)
SAVING_KILLS, RUN_KILLS = 30 if SLOW else 5, 10
FLIPS, TRUNCATIONS = 60, 26


def start(function: Any, *arguments: Any) -> BaseProcess:
    """Starts a process that calls a function of this module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tests.small_tasks"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def save_forever(workdir: Path, first: int) -> None:
    """Saves a checkpoint of 4 MB after another."""
    weights = {"w": torch.zeros(500_000)}
    optimizer = contents()["optimizer"] | {"momentum": weights}
    for step in itertools.count(first):
        values = contents(step) | {"parameters": weights, "optimizer": optimizer}
        checkpoint.save(workdir, values, step, keep_last=2, keep_every=0)


def train(workdir: Path) -> None:
    """Trains to the end, and saves after every step."""
    torch.set_num_threads(1)
    run_task(TASK, workdir)


class KillTest(TaskTestCase):
    def test_kills_inside_a_save_leave_only_complete_checkpoints(self) -> None:
        moments, interrupted = random.Random(0), 0
        for _ in range(SAVING_KILLS):
            newest = checkpoint.latest(self.folder)
            step = 0 if newest is None else checkpoint.peek(newest)["step"]
            process = start(save_forever, self.folder, step + 1)
            self.addCleanup(process.kill)
            while newest == checkpoint.latest(self.folder) and process.is_alive():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            process.join()
            folder = self.folder / "checkpoints"
            for path in folder.glob("step_*.pt"):
                checkpoint.load(path, "cpu")
            interrupted += len(list(folder.glob("*.tmp")))
            checkpoint.tidy(self.folder, checkpoint.latest(self.folder))
            self.assertEmpty(list(folder.glob("*.tmp")))
        print(f"{interrupted} of {SAVING_KILLS} kills were inside a save")
        self.assertGreater(interrupted, 0)

    def test_killed_runs_resume_to_the_same_bits(self) -> None:
        if not SLOW:
            self.skipTest("slow")
        torch.set_num_threads(1)
        run_task(TASK, self.folder / "whole")
        moments, workdir = random.Random(0), self.folder / "killed"
        for _ in range(RUN_KILLS):
            process = start(train, workdir)
            before = checkpoint.latest(workdir)
            while checkpoint.latest(workdir) == before and process.is_alive():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
            process.join()
        train(workdir)
        self.assert_same_training(final(workdir), final(self.folder / "whole"))


class DamageTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.contents = contents(7)
        self.path = checkpoint.save(self.folder, self.contents, 7, keep_last=1, keep_every=0)
        self.good = self.path.read_bytes()
        self.random = random.Random(0)

    def rejected(self, data: bytes) -> bool:
        """Returns whether a checkpoint is rejected in one line; otherwise it must be harmless."""
        self.path.write_bytes(data)
        checkpoint._problem_of_file.cache_clear()
        try:
            checkpoint.latest(self.folder)
            loaded = checkpoint.load(self.path, "cpu")
        except UserError as error:
            self.assertNotIn("\n", str(error))
            return True
        for part in ("parameters", "buffers", "optimizer", "rng"):
            torch.testing.assert_close(loaded.pop(part), self.contents[part], rtol=0, atol=0)
        self.assertEqual(loaded, {key: self.contents[key] for key in loaded})
        return False

    def test_flipped_bits_are_detected_or_harmless(self) -> None:
        detected = 0
        for _ in range(FLIPS):
            data = bytearray(self.good)
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            detected += self.rejected(bytes(data))
        print(f"{detected} of {FLIPS} flipped bits detected, the others harmless")
        self.assertGreater(detected, FLIPS // 2)

    def test_every_truncation_is_detected(self) -> None:
        lengths = [0, 1, len(self.good) - 1, *self.random.sample(range(len(self.good)), 23)]
        self.assertLen(lengths, TRUNCATIONS)
        for length in lengths:
            self.assertTrue(self.rejected(self.good[:length]), length)


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Makes the system reject writes beyond a size, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class FullDiskTest(FolderTestCase):
    def save(self, step: int) -> Path:
        return checkpoint.save(self.folder, contents(step), step, keep_last=1, keep_every=0)

    @parameterized.parameters(0, 1, 500, 2000, 5000)
    def test_a_save_that_does_not_fit_keeps_the_checkpoint_before_it(self, size: int) -> None:
        path = self.save(1)
        with small_files(size), self.assertRaisesRegex(UserError, "be written: File too large; "):
            self.save(2)
        self.assertEqual([*path.parent.iterdir()], [path])
        checkpoint.load(path, "cpu")
        self.assertEqual(checkpoint.latest(self.folder), path)
        checkpoint.load(self.save(2), "cpu")


class PayloadTest(FolderTestCase):
    @parameterized.named_parameters((payload.name, payload) for payload in PAYLOADS)
    def test_code_in_a_checkpoint_is_refused_and_does_not_run(self, payload: Payload) -> None:
        intact = checkpoint.save(self.folder, contents(1), 1, keep_last=9, keep_every=0)
        marker = self.folder / "ran"
        path = checkpoint.checkpoint_path(self.folder, 2)
        torch.save(contents(2) | {"data": payload.build(marker)}, path)
        with self.assertRaises(UserError):
            checkpoint.load(path, "cpu")
        # The run resumes from the checkpoint before it.
        self.assertEqual(checkpoint.latest(self.folder), intact)
        self.assertFalse(marker.exists())
        # The payload works where it is allowed to.
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=False)
        self.assertTrue(marker.exists())


if __name__ == "__main__":
    absltest.main()
