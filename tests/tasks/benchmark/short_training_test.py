"""Tests of jigclu.tasks.benchmark.short_training."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.data.procedural import ProceduralImages
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.benchmark.short_training import ShortTraining, measure_training
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluation
from tests.samples import tiny_model
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

TASK = PretrainTask(**PRETRAINING)
EVALUATION = KnnEvaluation(
    bank=ProceduralImages(images=20, size=32, seed=0, split="train"),
    queries=ProceduralImages(images=10, size=32, seed=0, split="val"),
    resize=32,
    crop=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    neighbors=2,
    temperature=0.07,
    batch_size=10,
    workers=0,
)


class FakeRun:
    """A run of at most 6 steps, each of 7 s of the host and 1 s of the device after it."""

    def __init__(self, machine: FakeMachine) -> None:
        self.state = mock.Mock(step=0)
        self._machine = machine

    def inputs(self) -> Iterator[tuple[int, float]]:
        for number in range(6):
            self._machine.wait(3)
            yield number, 3.0

    def take_step(self, batch: int) -> dict[str, torch.Tensor]:
        self.state.step += 1
        self._machine.wait(4)
        self._machine.compute(1)
        return {"loss": torch.tensor(0.5 + self.state.step)}

    def score(self) -> dict[str, float]:
        self._machine.wait(1000)
        return {"knn_accuracy": 0.1 + 0.2 * self.state.step, "knn_accuracy_chance": 0.1}


class ShortTrainingTest(absltest.TestCase):
    def measure(self, seconds: float) -> ShortTraining:
        machine = FakeMachine()

        def start(task: PretrainTask, folder: Path, *_: Any) -> FakeRun:
            machine.wait(10_000)
            return FakeRun(machine)

        with mock.patch.object(PretrainTask, "start", start):
            return measure_training(TASK, seconds, machine.instruments)

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
        task = dataclasses.replace(TASK, small_stem=False, evaluation=EVALUATION)
        cpu = device_instruments(torch.device("cpu"))
        with mock.patch.object(PretrainTask, "model", lambda _: tiny_model()):
            training = measure_training(task, 1e-9, cpu)
        self.assertEqual((training.steps, training.chance), (1, 0.1))
        self.assertGreater(training.seconds, training.waited)
        self.assertGreater(training.loss, 0)


if __name__ == "__main__":
    absltest.main()
