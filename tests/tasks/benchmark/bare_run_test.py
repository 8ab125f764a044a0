"""Tests of jigclu.tasks.benchmark.bare_run."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system.machine import Machine
from jigclu.tasks.benchmark.bare_run import BareRun
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import loop
from jigclu.training.settings import with_settings
from tests.samples import tiny_model
from tests.small_tasks import KNN, PRETRAINING, TaskTestCase, final, run_task
from tests.tasks.benchmark.fakes import FakeMachine

CPU = torch.device("cpu")


class FakeEvaluator:
    """Scores every encoder alike, and keeps what it is called with."""

    every = 0

    def __init__(self, scores: dict[str, float]) -> None:
        self.calls: list[tuple[Any, torch.dtype]] = []
        self._scores = scores

    def __call__(self, encoder: Any, precision: torch.dtype) -> dict[str, float]:
        self.calls.append((encoder, precision))
        return self._scores


class BareRunTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.enter_context(mock.patch.object(PretrainTask, "network", lambda _: tiny_model()))

    def test_steps_and_scores_are_those_of_a_whole_run(self) -> None:
        # The learning rate changes at every step.
        task = with_settings(PRETRAINING, stop_after_steps=2, per_epoch=False, evaluators=(KNN,))
        bare = BareRun(task, CPU)
        scores = [(0, bare.evaluate())]
        rates = [bare.take_step(batch)["learning_rate"] for batch, _ in bare.batches()]
        self.assertEqual(bare.steps, 2)
        self.assertLess(rates[1], rates[0])
        scores.append((2, bare.evaluate()))
        run_task(task, self.folder)
        whole = final(self.folder)
        self.assertEqual(scores, whole["scores"])
        self.assert_tensors_close(bare._state.parameters, whole["parameters"], 0.0)
        self.assert_tensors_close(bare._state.buffers, whole["buffers"], 0.0)
        momentum = bare._state.moments["momentum"]
        self.assert_tensors_close(momentum, whole["optimizer"]["momentum"], 0.0)

    def test_has_the_settings_of_its_machine(self) -> None:
        with mock.patch.object(Machine, "apply", autospec=True) as applied:
            BareRun(PRETRAINING, CPU)
        applied.assert_called_once_with(PRETRAINING.choose_machine(None))

    def test_a_batch_comes_with_the_wait_for_it(self) -> None:
        machine = FakeMachine()

        def read(_: PretrainTask, start_step: int, *rest: Any) -> Iterator[int]:
            for number, seconds in enumerate((3, 5)):
                machine.wait(seconds)
                yield start_step + number

        with (
            mock.patch.object(PretrainTask, "batches", read),
            mock.patch.object(loop, "time", mock.Mock(monotonic=lambda: machine.now)),
        ):
            found = []
            for batch, wait in BareRun(PRETRAINING, CPU).batches():
                machine.wait(1000)  # The step.
                found.append((batch, wait))
        self.assertEqual(found, [(0, 3), (1, 5)])

    def test_all_evaluators_score_the_encoder_in_the_precision_of_the_run(self) -> None:
        first, second = FakeEvaluator({"a": 0.5, "a_chance": 0.1}), FakeEvaluator({"b": 0.25})
        task = with_settings(PRETRAINING, evaluators=(first, second), precision="bfloat16")
        run = BareRun(task, CPU)
        self.assertEqual(run.evaluate(), {"a": 0.5, "a_chance": 0.1, "b": 0.25})
        expected = [(run._step.network.encoder, torch.bfloat16)]
        self.assertEqual(first.calls, expected)
        self.assertEqual(second.calls, expected)


if __name__ == "__main__":
    absltest.main()
