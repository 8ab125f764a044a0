"""Tests of jigclu.ops.optim."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.ops import optim
from jigclu.ops.optim import LossScaling
from jigclu.system.errors import UserError

SHAPES = [(3, 4), (4,), (2, 3, 3, 3)]
SCALING = LossScaling(initial=8.0, growth=2.0, backoff=0.5, interval=3)
SGD = optim.SGD(momentum=0.9, weight_decay=1e-2)
LARS = optim.LARS(momentum=0.9, weight_decay=1e-2, trust_coefficient=1e-3)


def random_tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def zeros() -> list[Tensor]:
    return [torch.zeros(shape) for shape in SHAPES]


class SgdTest(absltest.TestCase):
    def test_equals_torch_over_several_steps_with_changing_rates(self) -> None:
        parameters, momenta = random_tensors(0), zeros()
        theirs = [torch.nn.Parameter(value.clone()) for value in parameters]
        optimizer = torch.optim.SGD(theirs, lr=1.0, momentum=0.9, weight_decay=1e-2)
        for step, rate in enumerate([0.1, 0.07, 0.03, 0.3]):
            gradients = random_tensors(1 + step)
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            parameters, momenta = SGD(parameters, gradients, momenta, torch.tensor(rate))
        torch.testing.assert_close(parameters, [value.detach() for value in theirs])
        buffers = [optimizer.state[value]["momentum_buffer"] for value in theirs]
        torch.testing.assert_close(momenta, buffers)

    def test_does_not_modify_its_arguments(self) -> None:
        parameters, gradients, momenta = arguments = [random_tensors(seed) for seed in range(3)]
        copies = [random_tensors(seed) for seed in range(3)]
        for optimizer in (SGD, LARS):
            optimizer(parameters, gradients, momenta, torch.tensor(0.1))
            torch.testing.assert_close(arguments, copies, rtol=0, atol=0)


class LarsTest(parameterized.TestCase):
    def test_equals_the_formula_over_several_steps(self) -> None:
        parameters, momenta = random_tensors(0), zeros()
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
            parameters, momenta = LARS(parameters, gradients, momenta, torch.tensor(rate))
        for actual, expected in zip(parameters + momenta, weights + velocities, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)

    @parameterized.parameters((0.0, 2.0), (3.0, 0.0), (0.0, 0.0))
    def test_zero_norms_give_plain_steps(self, weight: float, gradient: float) -> None:
        lars = optim.LARS(momentum=0.9, weight_decay=0.0, trust_coefficient=1e-3)
        (moved,), (momentum,) = lars(
            [torch.full((2, 2), weight)],
            [torch.full((2, 2), gradient)],
            [torch.zeros(2, 2)],
            torch.tensor(0.5),
        )
        self.assertEqual(moved.tolist(), [[weight - 0.5 * gradient] * 2] * 2)
        self.assertEqual(momentum.tolist(), [[gradient] * 2] * 2)


class UpdateTest(parameterized.TestCase):
    @parameterized.parameters(SGD, LARS)
    def test_divides_gradients_by_the_loss_scale(self, optimizer: optim.Optimizer) -> None:
        parameters, gradients, momenta = (random_tensors(seed) for seed in range(3))
        rate = torch.tensor(0.1)
        scaled = [1024 * gradient for gradient in gradients]
        *actual, finite = optim.update(
            parameters, scaled, momenta, rate, torch.tensor(1024.0), optimizer
        )
        self.assertTrue(finite)
        expected = optimizer(parameters, gradients, momenta, rate)
        torch.testing.assert_close(actual, list(expected), rtol=0, atol=0)

    @parameterized.product(
        optimizer=[SGD, LARS], value=[torch.inf, -torch.inf, torch.nan], tensor=[0, 1, 2]
    )
    def test_one_nonfinite_element_skips_the_step_bitwise(
        self, optimizer: optim.Optimizer, value: float, tensor: int
    ) -> None:
        parameters, gradients, momenta = (random_tensors(seed) for seed in range(3))
        gradients[tensor].view(-1)[1] = value
        *actual, finite = optim.update(
            parameters, gradients, momenta, torch.tensor(0.1), torch.tensor(4.0), optimizer
        )
        self.assertFalse(finite)
        for kept, before in zip(actual, (parameters, momenta), strict=True):
            self.assertTrue(all(map(torch.equal, kept, before)))

    def test_huge_gradients_are_finite(self) -> None:
        # Their sum and the sum of their squares overflow.
        self.assertTrue(optim.all_finite([torch.full((4, 4), 3e38), torch.zeros(2)]))

    def test_compiles_once_without_graph_breaks(self) -> None:
        compiled = torch.compile(optim.update, fullgraph=True)
        parameters, momenta = random_tensors(0), zeros()
        for step, rate in enumerate([0.1, 0.05, 0.2]):
            gradients = random_tensors(1 + step)
            if step == 2:
                gradients[0][0, 0] = torch.nan
            arguments = (torch.tensor(rate), torch.tensor(2.0**step), SGD)
            with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
                actual = compiled(parameters, gradients, momenta, *arguments)
            expected = optim.update(parameters, gradients, momenta, *arguments)
            torch.testing.assert_close(actual, expected)
            self.assertEqual(actual[2].item(), step < 2)
            parameters, momenta, _ = expected


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
        sgd = optim.SGD(momentum=0.5, weight_decay=0.0)
        rates = optim.PerParameterRates(optimizer=sgd, factors=(1.0, 10.0, 1.0))
        parameters, new_momenta = rates(values, gradients, momenta, torch.tensor(0.1))
        # Momenta are 0.5 * old + gradient; steps are 0.1, 0.1 * 10 and 0.1 times the momenta.
        for actual, expected in zip(new_momenta, ([1.0, 1.5], [2.0], [0.0]), strict=True):
            torch.testing.assert_close(actual, torch.tensor(expected))
        for actual, expected in zip(parameters, ([0.9, 1.85], [1.0], [4.0]), strict=True):
            torch.testing.assert_close(actual, torch.tensor(expected))


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
    )
    def test_optimizers_reject_settings_out_of_range(self, name: str, value: Any) -> None:
        for optimizer in (SGD, LARS):
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
