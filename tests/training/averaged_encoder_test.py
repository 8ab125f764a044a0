"""The averaged encoder: by hand, in runs and their evaluations, resumed, and in new runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.models.weights import AVERAGED
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.averaged_encoder import AveragedEncoder
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from tests.samples import TinyEncoder, tiny_model
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task

# Three steps.
WITHOUT = with_settings(PRETRAINING, epochs=1, log_every=100, picture_every=0)
TASK = with_settings(WITHOUT, average_momentum=0.3)


@dataclass
class Witness:
    """An evaluator that keeps the tensors of the encoders that it is given."""

    every: int = 1
    seen: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, encoder: TinyEncoder, *_: Any) -> dict[str, float]:
        self.seen.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return {"seen": 1.0, "seen_chance": 0.0}


def averaged(contents: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the averaged encoder of a checkpoint, by the encoder's names."""
    prefix = f"{AVERAGED}."
    return {
        name.removeprefix(prefix): value
        for name, value in contents["buffers"].items()
        if name.startswith(prefix)
    }


def trained(contents: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the trained encoder of a checkpoint, likewise."""
    tensors = contents["parameters"] | contents["buffers"]
    prefix = "encoder."
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


class AveragedEncoderTest(absltest.TestCase):
    def test_three_steps_by_hand(self) -> None:
        encoder = TinyEncoder()
        average = AveragedEncoder(encoder, 0.2)
        expected = {name: value.numpy().copy() for name, value in encoder.state_dict().items()}
        self.assertCountEqual(average.tensors, [f"{AVERAGED}.{name}" for name in expected])
        # Of the steps 0, 1 and 2: 1 / 10, 2 / 11, and 3 / 12, which is more than 0.2.
        for step, momentum in enumerate((0.1, 2 / 11, 0.2)):
            for number, (name, value) in enumerate(encoder.state_dict().items()):
                value.fill_(10.0 * step + number)
                expected[name] = momentum * expected[name] + (1 - momentum) * value.numpy()
            average.update(step)
        for name, value in average.encoder.state_dict().items():
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-6)

    def test_restart_copies_the_encoder(self) -> None:
        encoder = TinyEncoder()
        average = AveragedEncoder(encoder, 0.9)
        for value in encoder.state_dict().values():
            value.uniform_()
        average.restart()
        for name, value in encoder.state_dict().items():
            self.assertTrue(torch.equal(average.encoder.state_dict()[name], value), name)

    def test_without_momentum_it_is_the_encoder(self) -> None:
        encoder = TinyEncoder()
        average = AveragedEncoder(encoder, 0.0)
        average.update(0)
        self.assertIs(average.encoder, encoder)
        self.assertEmpty(average.tensors)


class PretrainingTest(TaskTestCase, parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.network = mock.patch.object(PretrainTask, "network", lambda _: tiny_model())
        self.enter_context(self.network)

    def train(self, name: str, task: PretrainTask = TASK) -> dict[str, Any]:
        run_task(task, self.folder / name)
        return final(self.folder / name)

    def assert_equal_tensors(self, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        self.assertCountEqual(actual, expected)
        self.assert_tensors_close(actual, {name: expected[name] for name in actual}, 0.0)

    def test_evaluators_score_the_average(self) -> None:
        witness = Witness()
        contents = self.train("run", with_settings(TASK, evaluators=(witness,)))
        self.assertLen(witness.seen, 2)  # Steps 0 and 3.
        self.assert_equal_tensors(witness.seen[0], tiny_model().encoder.state_dict())
        self.assert_equal_tensors(witness.seen[-1], averaged(contents))
        for name, value in trained(contents).items():
            self.assertFalse(torch.equal(value, witness.seen[-1][name]), name)

    def test_training_and_checkpoints_are_as_without_it(self) -> None:
        witness = Witness()
        without = self.train("without", with_settings(WITHOUT, evaluators=(witness,)))
        self.assert_equal_tensors(witness.seen[-1], trained(without))
        with_average = self.train("with")
        self.assert_tensors_close(with_average["parameters"], without["parameters"], 0.0)
        added = [f"{AVERAGED}.{name}" for name in averaged(with_average)]
        self.assertLen(added, 5)
        self.assertCountEqual(with_average["buffers"], [*without["buffers"], *added])

    def test_a_resumed_run_equals_a_whole_one(self) -> None:
        whole = self.train("whole")
        self.train("parts", with_settings(TASK, stop_after_steps=2))
        self.assert_same_training(self.train("parts"), whole)

    def test_it_cannot_be_added_to_a_run(self) -> None:
        self.train("run", with_settings(WITHOUT, stop_after_steps=2))
        with self.assertRaisesRegex(UserError, "^average_momentum was 0.0 and is 0.3"):
            TASK.check(self.folder / "run")

    def test_the_average_of_a_new_run_starts_from_its_initial_weights(self) -> None:
        def load(init_from: str, tensors: dict[str, Tensor], encoder: str) -> str:
            self.assertFalse([name for name in tensors if name.startswith(AVERAGED)])
            for value in tensors.values():
                value.fill_(0.5)
            return f"{encoder} of {init_from}"

        witness = Witness()
        task = with_settings(
            TASK, init_from="weights.pth", evaluators=(witness,), stop_after_steps=1
        )
        with mock.patch("jigclu.tasks.pretrain.load_into", load):
            task.run(self.folder, "")
        for name, value in witness.seen[0].items():
            self.assertTrue((value == 0.5).all(), name)

    @parameterized.parameters("float32", "float16")
    def test_skipped_steps_leave_it_finite(self, precision: str) -> None:
        take_step = PretrainTask.take_step

        def overflow(
            task: PretrainTask, step: TrainingStep, state: TrainState, *arguments: Any
        ) -> StepResult:
            scale = state.loss_scale
            if state.step == 2:
                state = state._replace(loss_scale=torch.tensor(torch.inf))
            result = take_step(task, step, state, *arguments)
            return result._replace(state=result.state._replace(loss_scale=scale))

        task = with_settings(TASK, precision=precision, bad_steps=1)
        witness = Witness()
        with mock.patch.object(PretrainTask, "take_step", overflow):
            contents = self.train("run", with_settings(task, evaluators=(witness,)))
        self.assertEqual(contents["optimizer"]["updates"], 2)
        for name, value in averaged(contents).items():
            self.assertTrue(value.isfinite().all(), name)

    @parameterized.parameters(-0.1, 1.0, float("nan"))
    def test_rejects_a_momentum_out_of_range(self, momentum: float) -> None:
        with self.assertRaisesRegex(UserError, "^average_momentum is .*; it must be in "):
            with_settings(TASK, average_momentum=momentum)

    def test_plan_counts_its_memory(self) -> None:
        # 11,168,832 parameters of the encoder with a small stem, and twice 9,600 statistics.
        self.assertIn("buffers 44.8)", TASK.plan(Path("runs/none")))


if __name__ == "__main__":
    absltest.main()
