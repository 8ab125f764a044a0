"""Tests of jigclu.tasks.benchmark.end_to_end."""

from collections.abc import Iterator
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import end_to_end
from jigclu.tasks.benchmark.end_to_end import EndToEnd, RunTime
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

# Two workers, each of which reads two batches ahead: with three more, 7 steps do not count.
TASK = with_settings(PRETRAINING, workers=2)
WARM_UP, STEPS = 7, 5


class FakeRun:
    """A run whose batches and steps take known times, the first ones much longer."""

    def __init__(self, machine: FakeMachine, total: int) -> None:
        self.taken: list[int] = []
        self._machine = machine
        self._total = total

    def batches(self) -> Iterator[tuple[int, float]]:
        for number in range(self._total):
            wait = 2.0 if number > WARM_UP else 1000.0
            self._machine.wait(wait)
            yield number, wait
        self._machine.wait(500)  # Worker processes end.

    def take_step(self, batch: int) -> None:
        self.taken.append(batch)
        self._machine.compute(3 if batch >= WARM_UP else 2000)


class EndToEndTest(absltest.TestCase):
    def test_steps_after_the_warm_up_are_timed_with_and_without_training(self) -> None:
        machine = FakeMachine()
        runs: list[FakeRun] = []

        def start(task: PretrainTask, device: torch.device) -> FakeRun:
            runs.append(FakeRun(machine, task.total_steps))
            return runs[-1]

        step = machine.action(4000, 2, 3.5, 4)
        with (
            mock.patch.object(end_to_end, "BareRun", start),
            mock.patch.object(end_to_end, "jigsaw_step", lambda *_: step),
        ):
            found = end_to_end.measure_end_to_end(TASK, STEPS, 3, machine.instruments)
        self.assertEqual(
            found,
            EndToEnd(
                steps=5,
                warm_up=7,
                # Each step takes 3 s, and its host waits 2 s for the batch after it.
                training=RunTime(seconds=5 * (3 + 2), waited=5 * 2),
                reading=RunTime(seconds=5 * 2, waited=5 * 2),
                step=3.5,
            ),
        )
        trained, read = runs
        self.assertEqual(trained.taken, list(range(WARM_UP + STEPS + 1)))
        self.assertEmpty(read.taken)

    def test_a_real_run_is_measured(self) -> None:
        task = with_settings(TASK, workers=0)
        cpu = device_instruments(torch.device("cpu"))
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            found = end_to_end.measure_end_to_end(task, 1, 1, cpu)
        self.assertEqual((found.steps, found.warm_up), (1, 3))
        self.assertGreater(found.training.waited, 0)
        self.assertGreater(found.training.seconds, found.training.waited)
        self.assertGreater(found.reading.seconds, 0)
        self.assertGreater(found.step, 0)


if __name__ == "__main__":
    absltest.main()
