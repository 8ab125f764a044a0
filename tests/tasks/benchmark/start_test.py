"""Tests of jigclu.tasks.benchmark.start."""

import os
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system.errors import UserError
from jigclu.tasks.benchmark import start
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING)


class StartTest(absltest.TestCase):
    def test_the_second_compiled_start_finds_the_cache_of_the_first(self) -> None:
        seen = []

        def first_step(task: PretrainTask, device: torch.device) -> float:
            folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
            seen.append((task.compile, os.listdir(folder)))
            with open(os.path.join(folder, "code"), "w", encoding="utf-8"):
                pass
            return [5.0, 80.0, 20.0][len(seen) - 1]

        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        with mock.patch.object(start, "_to_first_step", first_step):
            table = start.measure_start(TASK, CPU)
        self.assertEqual([compile for compile, _ in seen], [False, True, True])
        self.assertEqual(seen[2][1], ["code"])
        self.assertEqual([row[2] for row in table.rows], [5 / 80, 1, 0.25])
        self.assertEqual(os.environ.get("TORCHINDUCTOR_CACHE_DIR"), before)

    def test_a_process_takes_its_first_step(self) -> None:
        self.assertGreater(start._to_first_step(TASK, CPU), 0)

    def test_a_process_that_ends_early_is_told_of(self) -> None:
        # An unknown device: the process raises before its step.
        with self.assertRaisesRegex(UserError, "ended before its first step"):
            start._to_first_step(TASK, torch.device("meta"))


if __name__ == "__main__":
    absltest.main()
