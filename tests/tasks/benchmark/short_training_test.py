"""Tests of jigclu.tasks.benchmark.short_training."""

from collections.abc import Iterator
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import short_training
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.benchmark.short_training import ShortTraining, measure_training
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.samples import tiny_model
from tests.small_tasks import KNN, PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine


class FakeRun:
    """A run of at most 6 steps, each of 7 s of the host and 1 s of the device after it."""

    def __init__(self, machine: FakeMachine) -> None:
        self.steps = 0
        self._machine = machine

    def batches(self) -> Iterator[tuple[int, float]]:
        for number in range(6):
            self._machine.wait(3)
            yield number, 3.0

    def take_step(self, batch: int) -> dict[str, torch.Tensor]:
        self.steps += 1
        self._machine.wait(4)
        self._machine.compute(1)
        return {"loss": torch.tensor(0.5 + self.steps)}

    def evaluate(self) -> dict[str, float]:
        self._machine.wait(1000)
        return {"knn_accuracy": 0.1 + 0.2 * self.steps, "knn_accuracy_chance": 0.1}


class ShortTrainingTest(absltest.TestCase):
    def measure(self, seconds: float) -> ShortTraining:
        machine = FakeMachine()

        def start(task: PretrainTask, device: torch.device) -> FakeRun:
            machine.wait(10_000)
            return FakeRun(machine)

        with mock.patch.object(short_training, "BareRun", start):
            return measure_training(PRETRAINING, seconds, machine.instruments)

    def test_the_clock_ends_the_training(self) -> None:
        # Two steps of 7 s end after 14 s; then their device computes 2 s more.
        for seconds in (13.0, 14.0):
            self.assertEqual(
                self.measure(seconds),
                ShortTraining(
                    steps=2,
                    seconds=16.0,
                    waited=6.0,
                    loss=2.5,
                    accuracy_before=0.1,
                    accuracy_after=0.5,
                    chance=0.1,
                ),
            )
        self.assertEqual(self.measure(14.5).steps, 3)

    def test_a_run_that_is_complete_ends_early(self) -> None:
        training = self.measure(1e6)
        self.assertEqual((training.steps, training.seconds), (6, 6 * 7 + 6))

    def test_a_real_run_trains(self) -> None:
        task = with_settings(PRETRAINING, evaluators=(KNN,))
        cpu = device_instruments(torch.device("cpu"))
        with mock.patch.object(PretrainTask, "network", lambda _: tiny_model()):
            training = measure_training(task, 1e-9, cpu)
        self.assertEqual((training.steps, training.chance), (1, 0.1))
        self.assertGreater(training.seconds, training.waited)
        self.assertGreater(training.loss, 0)


if __name__ == "__main__":
    absltest.main()
