"""Checks that every method of two views with targets must pass: `class XTest(TwoViewsCase)`."""

import dataclasses
import functools
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from jigclu.data.procedural import ProceduralImages
from jigclu.methods.byol import Byol
from jigclu.methods.forward import MethodForward
from jigclu.methods.moco import Moco
from jigclu.methods.simsiam import SimSiam
from jigclu.models.encoder import create_encoder
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import initial_weights
from jigclu.training.settings import with_settings
from jigclu.training.step import TrainingStep
from tests.ranks import run_on_ranks
from tests.samples import BATCH, method_inputs, tiny_network
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task
from tests.step_case import SCALING, SGD, train_tiny

IMAGES = 16  # Of a batch of generated images.
TwoViews = Moco | SimSiam | Byol


def train_on_generated_images(
    method: TwoViews, steps: int, learning_rate: float
) -> tuple[list[float], dict[str, float]]:
    """Returns the losses of all steps, and the measures of the last one."""
    method = dataclasses.replace(method, view_size=32)
    source = ProceduralImages(images=8 * IMAGES, size=32, seed=0, split="train")
    dataset = method.dataset(source, 0, IMAGES)
    crops = torch.stack([dataset[0, index].crops for index in range(len(source))])
    batches = crops.split(IMAGES)
    forward = MethodForward(method, tiny_network(method), "float32", True, None, steps)
    step = TrainingStep(forward, SGD, SCALING, False, torch.device("cpu"))
    state, losses = step.initial_state(), []
    measures: dict[str, Tensor] = {}
    for number in range(steps):
        inputs = method.step_inputs(batches[number % len(batches)], 0, number)
        state, metrics, measures = step(state, inputs, learning_rate, number == steps - 1)
        losses.append(metrics["loss"].item())
    return losses, {name: value.item() for name, value in measures.items()}


class TwoViewsCase(TaskTestCase):
    """A test case of a method.

    method: of a global batch of `samples.BATCH`.
    learner: the method of a batch of `IMAGES`, and the learning rate at which it learns.
    """

    method: ClassVar[TwoViews]
    learner: ClassVar[tuple[TwoViews, float]]
    first_step: ClassVar[int] = 0  # From which on a smaller loss means learning.

    def task(self, **changes: Any) -> PretrainTask:
        method = dataclasses.replace(self.method, view_size=32)
        return with_settings(PRETRAINING, method=method, **changes)

    def assert_rejected(self, change: dict[str, Any], message: str) -> None:
        """Checks that the method rejects a change of its settings."""
        with self.assertRaisesRegex(UserError, f"^{message}"):
            dataclasses.replace(self.method, **change)

    def run_tiny(self, workdir: Path, **changes: Any) -> str:
        """Pre-trains a tiny network, which has no name, for the steps of `small_tasks`."""
        network = functools.partial(tiny_network, self.method)
        with mock.patch.object(PretrainTask, "network", lambda _: network()):
            return run_task(self.task(**changes), workdir)

    def assert_close(self, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Compares values; some are 0 but for rounding, such as means of normalized vectors."""
        self.assertEqual(list(actual), list(expected))
        for name, value in expected.items():
            with self.subTest(name):
                torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)

    def test_two_ranks_equal_one(self) -> None:
        alone = train_tiny(self.method)
        for rank in run_on_ranks(train_tiny, 2, self.method):
            for ours, theirs in zip(rank["metrics"], alone["metrics"], strict=True):
                self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-4)
            for name in ("gradients", "buffers", "parameters"):
                self.assert_close(rank[name], alone[name])

    def test_compiled_equals_eager_without_breaks_or_recompilation(self) -> None:
        torch._dynamo.utils.counters.clear()
        eager = train_tiny(self.method)
        compiled = train_tiny(self.method, use_compile=True)
        self.assertEqual(compiled["graph_breaks"], 0)
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 2)
        for name in ("gradients", "buffers", "parameters"):
            self.assert_close(compiled[name], eager[name])

    def test_recomputation_in_one_micro_batch_changes_nothing(self) -> None:
        whole = train_tiny(self.method)
        recomputed = train_tiny(self.method, micro_batch_size=BATCH)
        for name in ("gradients", "buffers", "parameters"):
            self.assert_tensors_close(recomputed[name], whole[name], 1e-6)

    def test_state_stays_float32_in_low_precision(self) -> None:
        for precision in ("bfloat16", "float16"):
            result = train_tiny(self.method, count=2, precision=precision)
            for part in ("parameters", "buffers"):
                for name, value in result[part].items():
                    self.assertEqual(value.dtype, torch.float32, name)
                    self.assertTrue(value.isfinite().all(), name)

    def test_skipped_step_leaves_all_state(self) -> None:
        forward = MethodForward(
            self.method, tiny_network(self.method), "float32", True, None, total_steps=10
        )
        step = TrainingStep(forward, SGD, SCALING, False, torch.device("cpu"), skip_bad_steps=True)
        state, _, _ = step(step.initial_state(), method_inputs(self.method, 0), 0.03)
        before = {name: value.clone() for name, value in state.tensors.items()}
        infinite = state._replace(loss_scale=torch.tensor(torch.inf))
        state, _, _ = step(infinite, method_inputs(self.method, 1), 0.03)
        self.assert_tensors_close(state.tensors, before, 0.0)

    def test_resumed_equals_uninterrupted(self) -> None:
        self.run_tiny(self.folder / "whole")
        self.run_tiny(self.folder / "parts", stop_after_steps=4)
        self.run_tiny(self.folder / "parts")
        whole = final(self.folder / "whole")
        self.assertEqual(whole["step"], 6)
        self.assert_same_training(final(self.folder / "parts"), whole)

    def test_learns_generated_images_without_collapse(self) -> None:
        method, learning_rate = self.learner
        losses, measures = train_on_generated_images(method, 120, learning_rate)
        before, after = fmean(losses[self.first_step :][:8]), fmean(losses[-8:])
        chance, floor = method.chance(IMAGES)["loss"], method.floor(IMAGES).get("loss", 0.0)
        self.assertGreater((before - after) / (chance - floor), 0.05)
        self.assertLess(after, chance)
        self.assertGreater(measures["embedding_deviation"], 0.3)

    def alarms(self, embeddings: Tensor) -> list[str]:
        """Returns the alarms of 40 reports with these embeddings, [images * 2, channels]."""
        task = self.task(log_every=1, epochs=20)
        outputs = self.outputs(embeddings)
        losses = self.method.losses(outputs, ())._asdict()
        measures = self.method.measures(outputs, ())
        values = {name: float(value) for name, value in (losses | measures).items()}
        alarms, found = task.alarms(), []
        for step in range(1, 41):
            found += alarms.check(step, values | task.references)
        return found

    def outputs(self, embeddings: Tensor) -> Any:
        """Returns outputs of the network whose embeddings are these."""
        raise NotImplementedError

    def test_collapse_raises_an_alarm(self) -> None:
        collapsed = torch.zeros(2 * IMAGES, 16)
        collapsed[:, 0] = 1
        self.assertRegex("\n".join(self.alarms(collapsed)), "collapse: ")

    def test_embeddings_of_images_raise_no_alarm(self) -> None:
        self.assertEmpty(self.alarms(torch.eye(IMAGES).repeat_interleave(2, 0)))

    def test_rising_loss_raises_no_alarm(self) -> None:
        alarms = self.task().alarms()
        for step in range(1, 21):
            self.assertEmpty(alarms.check(step, {"loss": float(step)}))

    def test_initial_weights_are_those_of_the_trained_encoder(self) -> None:
        torch.manual_seed(0)
        network = self.method.network(create_encoder("resnet18", small_stem=True))
        state = {name: value + 0.125 for name, value in network.state_dict().items()}
        for name in state:
            if name.startswith("momentum_encoder"):
                state[name] = state[name] + 1.0
        torch.save({"state_dict": state}, self.folder / "weights.pth")
        weights = initial_weights.read(str(self.folder / "weights.pth"))
        expected = state["encoder.conv1.weight"]
        self.assertTrue(torch.equal(weights.tensors["encoder.conv1.weight"], expected))
