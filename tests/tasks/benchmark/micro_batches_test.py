"""Tests of jigclu.tasks.benchmark.micro_batches."""

from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import micro_batches
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING | {"small_stem": False})


class MicroBatchesTest(absltest.TestCase):
    def test_a_size_is_measured(self) -> None:
        table = micro_batches.measure_micro_batches(TASK, (2,), ("float32",), 1, CPU)
        self.assertEqual(
            [row[0] for row in table.rows],
            ["float32, micro-batches of 2"],
        )
        for _, rate, memory in table.rows:
            self.assertGreater(rate, 0)
            self.assertGreaterEqual(memory, 0)

    def test_a_size_that_does_not_fit_is_an_empty_row(self) -> None:
        steps = mock.Mock(side_effect=[torch.OutOfMemoryError("no memory"), lambda: None])
        with mock.patch.object(micro_batches, "jigsaw_step", steps):
            table = micro_batches.measure_micro_batches(TASK, (None, 2), ("float32",), 1, CPU)
        self.assertEqual(table.rows[0], ("float32, whole batch", None, None))
        self.assertIsNotNone(table.rows[1][1])
        self.assertEqual(steps.call_args.args[0].micro_batch_size, 2)


if __name__ == "__main__":
    absltest.main()
