"""Tests of jigclu.ops.optim."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn

from jigclu.ops import optim
from jigclu.ops.optim import LossScaling, Moments
from jigclu.system.errors import UserError
from tests.samples import ADAMW

SHAPES = [(3, 4), (4,), (2, 3, 3, 3)]
SCALING = LossScaling(initial=8.0, growth=2.0, backoff=0.5, interval=3)
SGD = optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-2, decay_norms_and_biases=True)
LARS = optim.LARS(momentum=0.9, weight_decay=1e-2, trust_coefficient=1e-3)


def random_tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def zeros(optimizer: optim.Optimizer) -> Moments:
    return {name: [torch.zeros(shape) for shape in SHAPES] for name in optimizer.moment_names}


def random_moments(optimizer: optim.Optimizer) -> Moments:
    """Returns moments as after some steps; squares are positive."""
    return {
        name: [value.abs() for value in random_tensors(2 + index)]
        for index, name in enumerate(optimizer.moment_names)
    }


def decayed_groups(
    parameters: list[nn.Parameter], weight_decay: float, decay_vectors: bool
) -> list[dict[str, Any]]:
    """Returns the parameter groups of torch.optim, vectors apart from weights."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": weight_decay * decay_vectors,
        },
    ]


def take_steps(
    optimizer: optim.Optimizer, theirs: torch.optim.Optimizer, rates: list[float]
) -> tuple[list[Tensor], Moments]:
    """Takes steps with both optimizers, whose parameters must start and remain equal."""
    parameters, moments = random_tensors(0), zeros(optimizer)
    own = {tuple(p.shape): p for group in theirs.param_groups for p in group["params"]}
    for step, rate in enumerate(rates):
        gradients = random_tensors(1 + step)
        for gradient in gradients:
            own[tuple(gradient.shape)].grad = gradient.clone()
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        parameters, moments = optimizer(
            parameters, gradients, moments, torch.tensor(step), torch.tensor(rate)
        )
        for parameter in parameters:
            expected = own[tuple(parameter.shape)].detach()
            torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-7)
    return parameters, moments


class SgdTest(parameterized.TestCase):
    @parameterized.product(nesterov=[False, True], decay_vectors=[False, True])
    def test_equals_torch_over_several_steps_with_changing_rates(
        self, nesterov: bool, decay_vectors: bool
    ) -> None:
        parameters = [nn.Parameter(value) for value in random_tensors(0)]
        groups = decayed_groups(parameters, 1e-2, decay_vectors)
        theirs = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
        ours = dataclasses.replace(SGD, nesterov=nesterov, decay_norms_and_biases=decay_vectors)
        _, moments = take_steps(ours, theirs, [0.1, 0.07, 0.03, 0.3])
        buffers = [theirs.state[value]["momentum_buffer"] for value in parameters]
        torch.testing.assert_close(moments["momentum"], buffers)

    def test_nesterov_without_momentum_is_rejected(self) -> None:
        with self.assertRaisesRegex(UserError, "^nesterov is True, but momentum is 0.0"):
            dataclasses.replace(SGD, nesterov=True, momentum=0.0)

    @parameterized.parameters(SGD, LARS, ADAMW)
    def test_does_not_modify_its_arguments(self, optimizer: optim.Optimizer) -> None:
        arguments = (random_tensors(0), random_tensors(1), random_moments(optimizer))
        copies = (random_tensors(0), random_tensors(1), random_moments(optimizer))
        optimizer(*arguments, torch.tensor(3), torch.tensor(0.1))
        torch.testing.assert_close(arguments, copies, rtol=0, atol=0)


class AdamWTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_equals_torch_over_several_steps_with_changing_rates(self, decay_vectors: bool) -> None:
        parameters = [nn.Parameter(value) for value in random_tensors(0)]
        groups = decayed_groups(parameters, 0.05, decay_vectors)
        theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
        ours = dataclasses.replace(ADAMW, decay_norms_and_biases=decay_vectors)
        _, moments = take_steps(ours, theirs, [0.1, 0.07, 0.03, 0.3] * 3)
        for name, key in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
            buffers = [theirs.state[value][key] for value in parameters]
            torch.testing.assert_close(moments[name], buffers)

    def test_biases_of_many_steps_are_precise(self) -> None:
        for updates in (0, 1, 10, 1000, 10**6, 10**9):
            expected = 1 - 0.999 ** (updates + 1)
            actual = optim._bias(0.999, torch.tensor(updates)).item()
            self.assertAlmostEqual(actual / expected, 1, delta=1e-6, msg=str(updates))


class LarsTest(parameterized.TestCase):
    def test_equals_the_formula_over_several_steps(self) -> None:
        parameters, moments = random_tensors(0), zeros(LARS)
        weights = [value.double().numpy() for value in parameters]
        velocities = [np.zeros(shape) for shape in SHAPES]
        for step, rate in enumerate([0.1, 0.07, 3.0]):
            gradients = random_tensors(1 + step)
            for index, gradient in enumerate(value.double().numpy() for value in gradients):
                if gradient.ndim > 1:
                    decayed = gradient + 1e-2 * weights[index]
                    size = np.sqrt(np.square(weights[index]).sum())
                    gradient = 1e-3 * size / np.sqrt(np.square(decayed).sum()) * decayed
                velocities[index] = 0.9 * velocities[index] + gradient
                weights[index] = weights[index] - rate * velocities[index]
            updates = torch.tensor(step)
            parameters, moments = LARS(parameters, gradients, moments, updates, torch.tensor(rate))
        ours = parameters + moments["momentum"]
        for actual, expected in zip(ours, weights + velocities, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)

    @parameterized.parameters((0.0, 2.0), (3.0, 0.0), (0.0, 0.0))
    def test_zero_norms_give_plain_steps(self, weight: float, gradient: float) -> None:
        lars = optim.LARS(momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3)
        (moved,), moments = lars(
            [torch.full((2, 2), weight)],
            [torch.full((2, 2), gradient)],
            {"momentum": [torch.zeros(2, 2)]},
            torch.tensor(0),
            torch.tensor(0.5),
        )
        (momentum,) = moments["momentum"]
        self.assertEqual(moved.tolist(), [[weight - 0.5 * gradient] * 2] * 2)
        self.assertEqual(momentum.tolist(), [[gradient] * 2] * 2)


class UpdateTest(parameterized.TestCase):
    @parameterized.parameters(SGD, LARS, ADAMW)
    def test_divides_gradients_by_the_loss_scale(self, optimizer: optim.Optimizer) -> None:
        parameters, gradients = random_tensors(0), random_tensors(1)
        moments, count, rate = random_moments(optimizer), torch.tensor(3), torch.tensor(0.1)
        scaled = [1024 * gradient for gradient in gradients]
        *actual, updates, finite = optim.update(
            parameters, scaled, moments, count, rate, torch.tensor(1024.0), optimizer
        )
        self.assertTrue(finite)
        self.assertEqual((updates.item(), updates.dtype), (4, torch.int64))
        expected = optimizer(parameters, gradients, moments, count, rate)
        torch.testing.assert_close(actual, list(expected), rtol=0, atol=0)

    @parameterized.product(
        optimizer=[SGD, LARS, ADAMW], value=[torch.inf, -torch.inf, torch.nan], tensor=[0, 1, 2]
    )
    def test_one_nonfinite_element_skips_the_step_bitwise(
        self, optimizer: optim.Optimizer, value: float, tensor: int
    ) -> None:
        parameters, gradients = random_tensors(0), random_tensors(1)
        moments, count = random_moments(optimizer), torch.tensor(3)
        gradients[tensor].view(-1)[1] = value
        kept, kept_moments, updates, finite = optim.update(
            parameters, gradients, moments, count, torch.tensor(0.1), torch.tensor(4.0), optimizer
        )
        self.assertFalse(finite)
        self.assertEqual(updates.item(), 3)
        self.assertTrue(all(map(torch.equal, kept, parameters)))
        for name, values in moments.items():
            self.assertTrue(all(map(torch.equal, kept_moments[name], values)), name)

    def test_huge_gradients_are_finite(self) -> None:
        # Their sum and the sum of their squares overflow.
        self.assertTrue(optim.all_finite([torch.full((4, 4), 3e38), torch.zeros(2)]))

    @parameterized.parameters(SGD, ADAMW)
    def test_compiles_once_without_graph_breaks(self, optimizer: optim.Optimizer) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(optim.update, fullgraph=True)
        parameters, moments, updates = random_tensors(0), zeros(optimizer), torch.tensor(0)
        for step, rate in enumerate([0.1, 0.05, 0.2]):
            gradients = random_tensors(1 + step)
            if step == 2:
                gradients[0][0, 0] = torch.nan
            arguments = (updates, torch.tensor(rate), torch.tensor(2.0**step), optimizer)
            with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
                actual = compiled(parameters, gradients, moments, *arguments)
            expected = optim.update(parameters, gradients, moments, *arguments)
            torch.testing.assert_close(actual, expected)
            self.assertEqual(actual[3].item(), step < 2)
            parameters, moments, updates, _ = expected
        self.assertEqual(updates.item(), 2)


class LossScaleTest(absltest.TestCase):
    def test_sequence_of_scales_by_hand(self) -> None:
        finite = [True, True, True, True, False, True, True, False, False, True, True, True]
        scales = [8, 8, 16, 16, 8, 8, 8, 4, 2, 2, 2, 4]
        counts = [1, 2, 0, 1, 0, 1, 2, 0, 0, 1, 2, 0]
        scale, good_steps = torch.tensor(SCALING.initial), torch.tensor(0)
        for step, expected in enumerate(zip(scales, counts, strict=True)):
            scale, good_steps = optim.next_loss_scale(
                scale, good_steps, torch.tensor(finite[step]), SCALING
            )
            self.assertEqual((scale.item(), good_steps.item()), expected, f"after step {step}")
        self.assertEqual((scale.dtype, good_steps.dtype), (torch.float32, torch.int64))

    def test_scale_equals_torchs(self) -> None:
        finite = (torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.8).tolist()
        scale, good_steps = torch.tensor(SCALING.initial), torch.tensor(0)
        theirs, tracker = torch.tensor(SCALING.initial), torch.tensor(0, dtype=torch.int32)
        for ok in finite:
            scale, good_steps = optim.next_loss_scale(scale, good_steps, torch.tensor(ok), SCALING)
            found = torch.tensor(0.0 if ok else 1.0)
            torch._amp_update_scale_(theirs, tracker, found, 2.0, 0.5, SCALING.interval)
            self.assertEqual((scale.item(), good_steps.item()), (theirs.item(), tracker.item()))


class PerParameterRatesTest(absltest.TestCase):
    def test_each_parameter_has_its_own_rate(self) -> None:
        values = [torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0])]
        gradients = [torch.tensor([0.5, 1.0]), torch.tensor([2.0]), torch.tensor([-1.0])]
        momenta = [torch.tensor([1.0, 1.0]), torch.tensor([0.0]), torch.tensor([2.0])]
        sgd = dataclasses.replace(SGD, momentum=0.5, weight_decay=0.0)
        rates = optim.PerParameterRates(optimizer=sgd, factors=(1.0, 10.0, 1.0))
        self.assertEqual(rates.moment_names, ("momentum",))
        parameters, moments = rates(
            values, gradients, {"momentum": momenta}, torch.tensor(0), torch.tensor(0.1)
        )
        new_momenta = moments["momentum"]
        # Momenta are 0.5 * old + gradient; steps are 0.1, 0.1 * 10 and 0.1 times the momenta.
        for actual, expected in zip(new_momenta, ([1.0, 1.5], [2.0], [0.0]), strict=True):
            torch.testing.assert_close(actual, torch.tensor(expected))
        for actual, expected in zip(parameters, ([0.9, 1.85], [1.0], [4.0]), strict=True):
            torch.testing.assert_close(actual, torch.tensor(expected))

    def test_adamw_equals_torch_with_a_rate_per_group(self) -> None:
        theirs = [nn.Parameter(value) for value in random_tensors(0)]
        rates = optim.PerParameterRates(optimizer=ADAMW, factors=(1.0, 1.0, 10.0))
        groups = decayed_groups(theirs, 0.05, False)
        optimizer = torch.optim.AdamW([*groups, {"params": [], "weight_decay": 0.05}])
        last = optimizer.param_groups[0]["params"].pop()
        optimizer.param_groups[2]["params"].append(last)
        parameters, moments = random_tensors(0), zeros(ADAMW)
        for step in range(3):
            gradients = random_tensors(1 + step)
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient.clone()
            for group, rate in zip(optimizer.param_groups, (0.01, 0.01, 0.1), strict=True):
                group["lr"] = rate
            optimizer.step()
            parameters, moments = rates(
                parameters, gradients, moments, torch.tensor(step), torch.tensor(0.01)
            )
        torch.testing.assert_close(parameters, [value.detach() for value in theirs])


class SettingsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("weight_decay", -1e-4),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("trust_coefficient", 0.0),
        ("trust_coefficient", math.nan),
        ("trust_coefficient", math.inf),
        ("beta1", 1.0),
        ("beta1", 0.0),
        ("beta2", math.nan),
        ("epsilon", 0.0),
        ("epsilon", math.inf),
    )
    def test_optimizers_reject_settings_out_of_range(self, name: str, value: Any) -> None:
        for optimizer in (SGD, LARS, ADAMW):
            if hasattr(optimizer, name):
                with self.assertRaisesRegex(UserError, f"^{name} is {value}; it must be"):
                    dataclasses.replace(optimizer, **{name: value})

    @parameterized.parameters(("initial", -5.0), ("growth", 0.5), ("backoff", 1.0), ("interval", 0))
    def test_loss_scaling_rejects_values_out_of_range(self, name: str, value: Any) -> None:
        with self.assertRaisesRegex(UserError, f"^{name} is {value}; it must be"):
            dataclasses.replace(SCALING, **{name: value})

    def test_rejects_learning_rates_out_of_range(self) -> None:
        optim.check_learning_rate(10.0)
        for learning_rate in (0.0, -1.0, float("nan"), float("inf")):
            with self.assertRaisesRegex(UserError, f"learning_rate is {learning_rate}"):
                optim.check_learning_rate(learning_rate)


if __name__ == "__main__":
    absltest.main()
