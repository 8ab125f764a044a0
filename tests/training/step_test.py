"""The training step equals a plain one; two ranks equal one, and compiled equals eager."""

import dataclasses
import math
from functools import partial
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.models.batch_norm import BatchNorm
from jigclu.training.state import TrainState
from tests.ranks import run_on_ranks
from tests.samples import (
    ADAMW,
    BATCH,
    EXTENDED,
    GRID,
    JIGSAW,
    SIZE,
    TinyEncoder,
    jigsaw_inputs,
    small_model,
    tiny_model,
    tiny_network,
)
from tests.step_case import (
    StepTestCase,
    explicit_losses,
    pretrain_step,
    train,
    train_tiny,
)


def train_both(count: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Trains by the published method, and tiny networks by the extended one and with a norm."""
    normalized = dataclasses.replace(JIGSAW, projection_norm=True)
    return train(count), train_tiny(EXTENDED, count), train_tiny(normalized, count)


class StepsTest(StepTestCase):
    def test_equals_a_plain_step(self) -> None:
        # torch's own batch normalization, optimizer and autograd, and the explicit mask.
        model = small_model(nn.BatchNorm2d)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
        inputs = jigsaw_inputs(0)
        clustering, location, accuracy = explicit_losses(model, inputs)
        (clustering + location).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        optimizer.step()

        result = train(1)
        metrics = result["metrics"][0]
        self.assertAlmostEqual(metrics["clustering_loss"], clustering.item(), delta=1e-4)
        self.assertAlmostEqual(metrics["location_loss"], location.item(), delta=1e-5)
        self.assertAlmostEqual(metrics["loss"], (clustering + location).item(), delta=1e-4)
        self.assertAlmostEqual(metrics["location_accuracy"], accuracy.item(), delta=1e-6)
        self.assertAlmostEqual(metrics["gradient_norm"], norm, delta=1e-4 * norm)
        self.assertAlmostEqual(metrics["learning_rate"], 0.03, delta=1e-8)
        self.assert_tensors_close(
            result["parameters"],
            {name: value.detach() for name, value in model.named_parameters()},
            1e-5,
        )

    def test_two_ranks_equal_one(self) -> None:
        published, extended, normalized = train_both(3)
        for rank, rank_extended, rank_normalized in run_on_ranks(train_both, 2, 3):
            self.assert_metrics_close(rank["metrics"], published["metrics"], 1e-5)
            self.assert_tensors_close(rank["gradients"], published["gradients"], 1e-5)
            self.assert_tensors_close(rank["buffers"], published["buffers"], 1e-5)
            self.assert_tensors_close(rank["parameters"], published["parameters"], 1e-5)
            self.assert_metrics_close(rank_extended["metrics"], extended["metrics"], 1e-5)
            self.assert_tensors_close(rank_extended["buffers"], extended["buffers"], 1e-5)
            self.assert_tensors_close(rank_extended["parameters"], extended["parameters"], 1e-5)
            self.assert_metrics_close(rank_normalized["metrics"], normalized["metrics"], 1e-5)
            self.assert_tensors_close(rank_normalized["buffers"], normalized["buffers"], 1e-5)

    def test_compiled_equals_eager_without_breaks_or_recompilation(self) -> None:
        torch._dynamo.utils.counters.clear()
        eager, compiled = train(4), train(4, use_compile=True)
        self.assertEqual(compiled["graph_breaks"], 0)
        # Forward and update, each compiled once and whole.
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 2)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-3)
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-4)
        self.assert_tensors_close(compiled["parameters"], eager["parameters"], 1e-4)
        self.assert_tensors_close(compiled["buffers"], eager["buffers"], 1e-4)

    def test_compiled_adamw_and_queue_equal_eager_without_recompilation(self) -> None:
        method = dataclasses.replace(EXTENDED, single_every=0)
        eager = train_tiny(method, 4, optimizer=ADAMW)
        compiled = train_tiny(method, 4, use_compile=True, optimizer=ADAMW)
        self.assertEqual(compiled["graph_breaks"], 0)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-3)
        self.assert_tensors_close(compiled["buffers"], eager["buffers"], 1e-3)
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-4)
        self.assert_tensors_close(compiled["parameters"], eager["parameters"], 1e-3)

    # The network for single patches and for montages, and the update; in micro-batches, the network
    # with gradient and without, and the losses.
    @parameterized.parameters((None, 2 + 1), (2, 2 * 2 + 1 + 1))
    def test_single_steps_add_one_graph_of_the_network(
        self, micro_batch_size: int | None, graphs: int
    ) -> None:
        torch._dynamo.utils.counters.clear()
        # Traces only: generating code takes much longer.
        with mock.patch.object(torch, "compile", partial(torch.compile, backend="eager")):
            result = train_tiny(EXTENDED, 5, use_compile=True, micro_batch_size=micro_batch_size)
        self.assertEqual(result["graph_breaks"], 0)
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], graphs)

    def test_adamw_on_two_ranks_equals_one(self) -> None:
        alone = train(3, optimizer=ADAMW)
        for rank in run_on_ranks(partial(train, optimizer=ADAMW), 2, 3):
            self.assert_tensors_close(rank["gradients"], alone["gradients"], 1e-5)

    def test_compiled_on_two_ranks_equals_eager_on_one(self) -> None:
        alone = train(3, build=tiny_model)
        for rank in run_on_ranks(train, 2, 3, True, "float32", None, BatchNorm, tiny_model):
            self.assertEqual(rank["graph_breaks"], 0)
            self.assert_metrics_close(rank["metrics"], alone["metrics"], 1e-3)
            self.assert_tensors_close(rank["gradients"], alone["gradients"], 1e-4)
            self.assert_tensors_close(rank["parameters"], alone["parameters"], 1e-4)

    def test_encoder_sees_patches_one_by_one_in_single_steps(self) -> None:
        sizes: list[tuple[int, ...]] = []

        def build(norm_layer: type[nn.Module]) -> nn.Module:
            network = tiny_network(EXTENDED, norm_layer)
            encoder = network.get_submodule("encoder")
            encoder.register_forward_pre_hook(lambda _, images: sizes.append(images[0].shape))
            return network

        train(4, build=build, method=EXTENDED)
        single, montages = (BATCH * GRID**2, 3, SIZE, SIZE), (BATCH, 3, GRID * SIZE, GRID * SIZE)
        self.assertEqual(sizes, [single, montages, montages, single])

    def test_single_steps_are_the_published_ones_if_the_encoder_sees_no_neighbors(self) -> None:
        # Strides of the width of the kernel.
        def build(norm_layer: type[nn.Module]) -> nn.Module:
            encoder = TinyEncoder(norm_layer)
            encoder.conv1 = nn.Conv2d(3, encoder.channels, 4, stride=4, bias=False)
            torch.manual_seed(0)
            nn.init.normal_(encoder.conv1.weight)
            return JIGSAW.network(encoder)

        published = train(2, build=build)
        single = train(2, build=build, method=dataclasses.replace(JIGSAW, single_every=1))
        self.assert_metrics_close(single["metrics"], published["metrics"], 1e-4)
        self.assert_tensors_close(single["parameters"], published["parameters"], 1e-4)
        self.assert_tensors_close(single["buffers"], published["buffers"], 1e-4)

    def test_queue_adds_to_the_loss_from_the_second_step_on(self) -> None:
        plain = train_tiny(dataclasses.replace(EXTENDED, queue_size=0), 2)["metrics"]
        queued = train_tiny(EXTENDED, 2)["metrics"]
        self.assertEqual(queued[0], plain[0])
        rise = queued[1]["clustering_loss"] - plain[1]["clustering_loss"]
        # The logarithm of twice as many negatives, times 0.3 / 0.07.
        self.assertBetween(rise, 0.5 * math.log(2) * 0.3 / 0.07, 1.5 * math.log(2) * 0.3 / 0.07)

    def test_state_shares_tensors_with_the_network(self) -> None:
        step = pretrain_step()
        state: TrainState = step.initial_state()
        address = state.parameters["fc_loc.weight"].data_ptr()
        self.assertEqual(step.network.get_parameter("fc_loc.weight").data_ptr(), address)
        state, _, _ = step(state, jigsaw_inputs(0), 0.03)
        self.assertEqual(state.parameters["fc_loc.weight"].data_ptr(), address)
        self.assertTrue(
            torch.equal(
                step.network.get_parameter("fc_loc.weight"), state.parameters["fc_loc.weight"]
            )
        )


if __name__ == "__main__":
    absltest.main()
