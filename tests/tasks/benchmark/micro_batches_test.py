"""Tests of jigclu.tasks.benchmark.micro_batches."""

from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import micro_batches
from jigclu.tasks.benchmark.instruments import Action, device_instruments
from jigclu.tasks.benchmark.micro_batches import MicroBatchCost
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

# By precision and size: seconds of the first call and of the next two, bytes of a call.
COSTS: dict[tuple[str, int | None], tuple[tuple[float, ...], int]] = {
    ("float32", 2): ((90, 5, 7), 300),
    ("bfloat16", None): ((80, 2, 3), 200),
    ("bfloat16", 2): ((70, 3, 5), 100),
}


class MicroBatchesTest(absltest.TestCase):
    def test_sizes_and_precisions_are_measured_unless_memory_runs_out(self) -> None:
        machine = FakeMachine()

        def build(task: PretrainTask, device: torch.device) -> Action:
            found = COSTS.get((task.compute.precision, task.micro_batch_size))
            if found is None:
                raise torch.OutOfMemoryError("no memory")
            return machine.action(*found[0], memory=found[1])

        with mock.patch.object(micro_batches, "jigsaw_step", build):
            found = micro_batches.measure_micro_batches(
                PRETRAINING, (None, 2), ("float32", "bfloat16"), 2, machine.instruments
            )
        self.assertEqual(
            found,
            [
                MicroBatchCost("float32", None, None),
                MicroBatchCost("float32", 2, Cost(Seconds(6, 5, 7), 300)),
                MicroBatchCost("bfloat16", None, Cost(Seconds(2.5, 2, 3), 200)),
                MicroBatchCost("bfloat16", 2, Cost(Seconds(4, 3, 5), 100)),
            ],
        )

    def test_a_step_that_runs_out_of_memory_is_left_out(self) -> None:
        def fail() -> None:
            raise torch.OutOfMemoryError("no memory")

        with mock.patch.object(micro_batches, "jigsaw_step", lambda *_: fail):
            (found,) = micro_batches.measure_micro_batches(
                PRETRAINING, (2,), ("float32",), 1, FakeMachine().instruments
            )
        self.assertIsNone(found.cost)

    def test_a_real_step_runs(self) -> None:
        cpu = device_instruments(torch.device("cpu"))
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            (found,) = micro_batches.measure_micro_batches(PRETRAINING, (2,), ("float32",), 1, cpu)
        assert found.cost is not None
        self.assertGreater(found.cost.seconds.least, 0)


if __name__ == "__main__":
    absltest.main()
