"""The training step equals a plain one; two ranks equal one, and compiled equals eager."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.forward import MethodForward
from jigclu.methods.method import Method, StepInputs
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.jigclu import JigClu, Outputs
from jigclu.ops import optim
from jigclu.training.state import TrainState
from jigclu.training.step import TrainingStep
from tests.ranks import run_on_ranks
from tests.samples import (
    ADAMW,
    AUGMENTATION,
    BATCH,
    EXTENDED,
    GRID,
    JIGSAW,
    SIZE,
    TinyEncoder,
    jigsaw_inputs,
    method_inputs,
    small_model,
    tiny_model,
    tiny_network,
)
from tests.small_tasks import TaskTestCase

SCALING = optim.LossScaling(initial=1024.0, growth=2.0, backoff=0.5, interval=2)
SGD = optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True)
STEPS = 8  # Of the schedule; the tests take the first ones.


def pretrain_step(
    use_compile: bool = False,
    precision: str = "float32",
    micro_batch_size: int | None = None,
    norm_layer: type[nn.Module] = BatchNorm,
    build: Callable[[type[nn.Module]], nn.Module] = small_model,
    *,
    method: Method = JIGSAW,
    optimizer: optim.Optimizer = SGD,
    device: str = "cpu",
    skip_bad_steps: bool = False,
) -> TrainingStep:
    forward = MethodForward(method, build(norm_layer), precision, True, micro_batch_size, STEPS)
    return TrainingStep(
        forward, optimizer, SCALING, use_compile, torch.device(device), skip_bad_steps
    )


def double_model(norm_layer: type[nn.Module] = BatchNorm) -> JigClu:
    """Builds `small_model` in float64.

    Statistics of few values make gradients of float32's last bit, which is the processor's.
    """
    model = small_model(norm_layer).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def train(
    count: int,
    use_compile: bool = False,
    *settings: Any,
    method: Method = JIGSAW,
    device: str = "cpu",
    **named: Any,
) -> dict[str, Any]:
    """Returns metrics of every step, a moment after the first, parameters and buffers at the end.

    After one step from zero the first moment is the averaged gradient (with SGD and decay), times
    a constant. Settings are those of `pretrain_step` after use_compile.
    """
    # Compilations of other tests would count here.
    torch._dynamo.reset()
    step = pretrain_step(use_compile, *settings, method=method, device=device, **named)
    state = step.initial_state()
    metrics, gradients = [], {}
    kinds: set[bool] = set()  # Of steps so far: with single patches, and with montages.
    for index in range(count):
        inputs = method_inputs(method, index, device)
        # Another learning rate and permutation at each step, neither of which may recompile.
        is_known, kinds = inputs.single in kinds, kinds | {inputs.single}
        with torch._dynamo.config.patch(error_on_recompile=is_known):
            state, values, _ = step(state, inputs, 0.03 / (index + 1))
            metrics.append({name: value.item() for name, value in values.items()})
            if index == 0:
                gradients = _on_cpu(next(iter(state.moments.values())))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return {
        "metrics": metrics,
        "gradients": gradients,
        "parameters": _on_cpu(state.parameters),
        "buffers": _on_cpu(state.buffers),
        "graph_breaks": breaks,
    }


def train_tiny(method: Method, count: int = 3, **settings: Any) -> dict[str, Any]:
    """Trains a tiny network of a method."""
    return train(count, build=partial(tiny_network, method), method=method, **settings)


def train_both(count: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Trains by the published method, and tiny networks by the extended one and with a norm."""
    normalized = dataclasses.replace(JIGSAW, projection_norm=True)
    return train(count), train_tiny(EXTENDED, count), train_tiny(normalized, count)


def _on_cpu(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to("cpu", copy=True) for name, value in values.items()}


def measure(norm_layer: type[nn.Module]) -> dict[str, Tensor]:
    """Returns the measures of a first step."""
    step = pretrain_step(build=double_model, norm_layer=norm_layer)
    inputs = method_inputs(JIGSAW, 0, "cpu")
    return step(step.initial_state(), inputs, 0.03, measured=True).measures


def explicit_losses(
    model: Callable[[Tensor], Any], inputs: StepInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses with the explicit mask of all pairs, as the method is published."""
    patches = AUGMENTATION(inputs.crops, inputs.augmentation)
    montages = [
        torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)
        for a, b, c, d in patches.unflatten(0, (-1, 4))
    ]
    embeddings, logits, _ = model(torch.stack(montages))
    (permutation,) = inputs.targets
    image, patch = permutation % BATCH, permutation // BATCH
    alike = image[:, None] == image[None]
    not_self = ~torch.eye(len(image), dtype=torch.bool)
    cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(embeddings, dim=1).T
    exponentials = (cosines / 0.3).exp() * not_self
    log_likelihood = cosines / 0.3 - exponentials.sum(1, keepdim=True).log()
    siblings = (alike & not_self).float()
    clustering = -0.3 / 0.07 * ((log_likelihood * siblings).sum(1) / siblings.sum(1)).mean()
    accuracy = (logits.argmax(1) == patch).float().mean()
    return clustering, functional.cross_entropy(logits, patch), accuracy


class StepsTest(TaskTestCase):
    def assert_metrics_close(
        self, actual: list[dict[str, float]], expected: list[dict[str, float]], relative: float
    ) -> None:
        for ours, theirs in zip(actual, expected, strict=True):
            self.assertEqual(list(ours), list(theirs))
            for name, value in theirs.items():
                self.assertAlmostEqual(ours[name], value, delta=relative * abs(value), msg=name)

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

    def test_overflow_does_not_count_as_an_update(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model, optimizer=ADAMW)
        state = step.initial_state()._replace(loss_scale=torch.tensor(1e38))
        state, _, _ = step(state, jigsaw_inputs(0), 1e-3)
        self.assertEqual((state.step, state.updates.item()), (1, 0))
        self.assert_tensors_equal(
            state.moments["second_moment"],
            {name: torch.zeros_like(value) for name, value in state.parameters.items()},
        )
        state, _, _ = step(state._replace(loss_scale=torch.tensor(8.0)), jigsaw_inputs(1), 1e-3)
        self.assertEqual((state.step, state.updates.item()), (2, 1))

    def test_compiled_on_two_ranks_equals_eager_on_one(self) -> None:
        alone = train(3, build=tiny_model)
        for rank in run_on_ranks(train, 2, 3, True, "float32", None, BatchNorm, tiny_model):
            self.assertEqual(rank["graph_breaks"], 0)
            self.assert_metrics_close(rank["metrics"], alone["metrics"], 1e-3)
            self.assert_tensors_close(rank["gradients"], alone["gradients"], 1e-4)
            self.assert_tensors_close(rank["parameters"], alone["parameters"], 1e-4)

    @parameterized.parameters(1, 2, 4)
    def test_micro_batches_without_batch_norm_equal_the_whole_batch(
        self, micro_batch_size: int
    ) -> None:
        whole = train(3, norm_layer=nn.Identity)
        pieces = train(3, micro_batch_size=micro_batch_size, norm_layer=nn.Identity)
        self.assert_metrics_close(pieces["metrics"], whole["metrics"], 1e-5)
        self.assert_tensors_close(pieces["gradients"], whole["gradients"], 1e-5)
        self.assert_tensors_close(pieces["parameters"], whole["parameters"], 1e-4)

    def test_micro_batches_of_the_extended_method_equal_the_whole_batch(self) -> None:
        whole = train_tiny(EXTENDED, norm_layer=nn.Identity)
        pieces = train_tiny(EXTENDED, norm_layer=nn.Identity, micro_batch_size=1)
        self.assert_metrics_close(pieces["metrics"], whole["metrics"], 1e-5)
        for part in ("gradients", "parameters", "buffers"):
            self.assert_tensors_close(pieces[part], whole[part], 1e-4)

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

    def test_micro_batches_on_two_ranks_equal_the_whole_batch_on_one(self) -> None:
        whole = train(3, norm_layer=nn.Identity)
        first, second = run_on_ranks(train, 2, 3, False, "float32", 1, nn.Identity)
        self.assert_metrics_close(first["metrics"], whole["metrics"], 1e-5)
        self.assert_tensors_close(first["gradients"], whole["gradients"], 1e-5)
        for name, value in first["parameters"].items():
            self.assertTrue(torch.equal(second["parameters"][name], value), name)

    def test_micro_batches_on_two_ranks_share_their_statistics(self) -> None:
        first, second = run_on_ranks(train, 2, 2, False, "float32", 1)
        for name in ("parameters", "buffers"):
            for key, value in first[name].items():
                self.assertTrue(torch.equal(second[name][key], value), key)

    def test_micro_batches_equal_plain_ones_without_recomputation(self) -> None:
        model = double_model()
        inputs = jigsaw_inputs(0)

        def pieces(montages: Tensor) -> Outputs:
            outputs = [model(piece) for piece in montages.split(2)]
            return Outputs(*map(torch.cat, zip(*outputs, strict=True)))

        clustering, location, _ = explicit_losses(pieces, inputs)
        (clustering + location).backward()
        gradients = {f"{n}": p.grad + 1e-4 * p for n, p in model.named_parameters()}  # type: ignore[operator]
        result = train(1, micro_batch_size=2, build=double_model)
        self.assertAlmostEqual(
            result["metrics"][0]["loss"], (clustering + location).item(), delta=1e-4
        )
        self.assert_tensors_close(result["gradients"], gradients, 1e-5)
        # Each micro-batch changes them once, and not again in its recomputation.
        self.assert_tensors_close(result["buffers"], dict(model.named_buffers()), 1e-5)

    def test_compiled_micro_batches_equal_eager_ones_without_recompilation(self) -> None:
        settings: dict[str, Any] = {
            "micro_batch_size": 2,
            "norm_layer": nn.Identity,
            "build": tiny_model,
        }
        torch._dynamo.utils.counters.clear()
        eager, compiled = train(3, **settings), train(3, use_compile=True, **settings)
        self.assertEqual(compiled["graph_breaks"], 0)
        # A micro-batch with and without gradient, the losses and the update.
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 4)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-4)
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-4)

    def test_compiled_micro_batches_change_buffers_once(self) -> None:
        # With two images per micro-batch, a second step would depend on rounding.
        eager = train(1, micro_batch_size=2, build=tiny_model)
        compiled = train(1, use_compile=True, micro_batch_size=2, build=tiny_model)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-3)
        self.assert_tensors_close(compiled["buffers"], eager["buffers"], 1e-4)

    def test_bfloat16_is_near_float32(self) -> None:
        full = train(1, build=tiny_model)["metrics"][0]
        half = train(1, precision="bfloat16", build=tiny_model)["metrics"][0]
        self.assertAlmostEqual(half["loss"], full["loss"], delta=0.02 * full["loss"])
        self.assertNotEqual(half["loss"], full["loss"])
        self.assertEqual(list(half), list(full))

    def test_float16_overflow_skips_the_step_and_halves_the_scale(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model)
        state = step.initial_state()._replace(loss_scale=torch.tensor(1e38))
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, _ = step(state, jigsaw_inputs(0), 0.03)
        self.assertEqual(metrics["skipped_steps"].item(), 1.0)
        self.assertEqual(metrics["gradient_norm"].item(), 0.0)
        self.assertEqual(state.loss_scale.item(), torch.tensor(5e37).item())
        self.assert_tensors_equal(state.parameters, before)
        self.assertEqual(state.step, 1)

        state, metrics, _ = step(
            state._replace(loss_scale=torch.tensor(8.0)), jigsaw_inputs(1), 0.03
        )
        self.assertEqual(metrics["skipped_steps"].item(), 0.0)
        self.assertFalse(torch.equal(state.parameters["fc_loc.weight"], before["fc_loc.weight"]))

    @parameterized.parameters(False, True)
    def test_bad_step_is_skipped_with_its_buffers(self, use_compile: bool) -> None:
        torch._dynamo.reset()
        step = pretrain_step(use_compile, build=tiny_model, skip_bad_steps=True)
        state, _, _ = step(step.initial_state(), jigsaw_inputs(0), 0.03)
        before = {name: value.clone() for name, value in state.tensors.items()}
        infinite = state._replace(loss_scale=torch.tensor(torch.inf))
        state, metrics, _ = step(infinite, jigsaw_inputs(1), 0.03)
        self.assertFalse(metrics["gradient_norm"].isfinite())
        self.assert_tensors_equal(state.tensors, before)
        self.assertEqual((state.step, state.updates.item()), (2, 1))
        state, _, _ = step(state._replace(loss_scale=torch.tensor(1.0)), jigsaw_inputs(2), 0.03)
        for name, value in state.tensors.items():
            self.assertFalse(torch.equal(value, before[name]), name)

    def test_skipping_bad_steps_changes_no_good_step(self) -> None:
        plain, skipping = train(3), train(3, skip_bad_steps=True)
        for part in ("parameters", "buffers", "gradients"):
            self.assert_tensors_equal(skipping[part], plain[part])

    def assert_tensors_equal(self, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        for name, value in expected.items():
            self.assertTrue(torch.equal(actual[name], value), name)

    def test_loss_scale_cancels_out(self) -> None:
        step = pretrain_step(precision="float16", build=tiny_model)
        norms = []
        for scale in (1.0, 4096.0):
            state = step.initial_state()._replace(loss_scale=torch.tensor(scale))
            _, metrics, _ = step(state, jigsaw_inputs(0), 1e-9)
            norms.append(metrics["gradient_norm"].item())
        self.assertAlmostEqual(norms[0], norms[1], delta=0.05 * norms[0])

    def test_non_finite_gradient_is_reported_and_changes_no_weight(self) -> None:
        step = pretrain_step()
        state = step.initial_state()
        with torch.no_grad():
            state.parameters["fc_loc.bias"][0] = torch.nan
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, _ = step(state, jigsaw_inputs(0), 0.03)
        self.assertTrue(metrics["loss"].isnan())
        self.assertFalse(metrics["gradient_norm"].isfinite())
        self.assertNotIn("skipped_steps", metrics)
        self.assertTrue(torch.equal(state.parameters["fc_clu.0.bias"], before["fc_clu.0.bias"]))

    def test_measured_steps_take_the_same_step_without_recompilation(self) -> None:
        torch._dynamo.reset()
        results = {}
        for use_compile, measured in ((False, False), (False, True), (True, True)):
            step = pretrain_step(use_compile, build=tiny_model)
            state = step.initial_state()
            for number in range(3):
                with torch._dynamo.config.patch(error_on_recompile=number > 0):
                    inputs = jigsaw_inputs(number)
                    # The first step is not measured.
                    state, _, measures = step(state, inputs, 0.03, measured and number > 0)
            results[use_compile, measured] = (_on_cpu(state.parameters), measures)
        plain, eager, compiled = results.values()
        self.assertEqual(plain[1], {})
        for name, value in plain[0].items():
            self.assertTrue(torch.equal(eager[0][name], value), name)
        for name, value in eager[1].items():
            torch.testing.assert_close(compiled[1][name], value, rtol=2e-2, atol=1e-3)

    def test_norms_of_modules(self) -> None:
        step = pretrain_step(build=tiny_model)
        state = step.initial_state()
        before = {name: value.clone() for name, value in state.parameters.items()}
        state, metrics, measures = step(state, jigsaw_inputs(0), 0.03, measured=True)

        def norm(values: dict[str, Tensor], module: str) -> float:
            own = [value for name, value in values.items() if name.startswith(f"{module}.")]
            return torch.cat([value.flatten() for value in own]).norm().item()

        changes = {name: state.parameters[name] - value for name, value in before.items()}
        squares = 0.0
        for module in ("encoder", "fc_clu", "fc_loc"):
            size = norm(before, module)
            self.assertAlmostEqual(measures[f"parameter_norm/{module}"].item() / size, 1.0, 5)
            ratio = measures[f"update_ratio/{module}"].item()
            self.assertAlmostEqual(ratio * size / norm(changes, module), 1.0, delta=1e-4)
            squares += measures[f"gradient_norm/{module}"].item() ** 2
        self.assertAlmostEqual(squares**0.5 / metrics["gradient_norm"].item(), 1.0, places=5)

    def test_measures_are_of_all_ranks(self) -> None:
        first, second = run_on_ranks(measure, 2, nn.Identity)
        alone = measure(nn.Identity)
        for name, value in alone.items():
            self.assertTrue(torch.equal(first[name], second[name]), name)
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)

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
