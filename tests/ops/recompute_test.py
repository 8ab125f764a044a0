"""Tests of jigclu.ops.recompute."""

import torch
from absl.testing import absltest
from torch import Tensor, nn

from jigclu.ops.recompute import recompute


class RecomputeTest(absltest.TestCase):
    def test_outputs_and_gradients_equal_a_plain_call(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        inputs = torch.randn(5, 3, dtype=torch.float64)

        def function(values: Tensor) -> tuple[Tensor, Tensor]:
            outputs = model(values)
            return outputs.sin(), outputs.cos()

        (one, two), (plain_one, plain_two) = recompute(function, model, inputs), function(inputs)
        self.assertTrue(torch.equal(one, plain_one))
        self.assertTrue(torch.equal(two, plain_two))
        actual = torch.autograd.grad((one * two + one).sum(), list(model.parameters()))
        expected = torch.autograd.grad(
            (plain_one * plain_two + plain_one).sum(), list(model.parameters())
        )
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)

    def test_function_runs_twice_and_updates_buffers_once(self) -> None:
        model = nn.BatchNorm1d(3)
        runs = []

        def function(values: Tensor) -> tuple[Tensor]:
            runs.append(torch.is_grad_enabled())
            return (model(values),)

        (outputs,) = recompute(function, model, torch.randn(8, 3))
        after = {name: value.clone() for name, value in model.named_buffers()}
        self.assertEqual(int(after["num_batches_tracked"]), 1)
        outputs.square().sum().backward()
        for name, value in model.named_buffers():
            self.assertTrue(torch.equal(value, after[name]), name)
        self.assertEqual(runs, [False, True])

    def test_frozen_parameters_and_their_outputs_receive_no_gradient(self) -> None:
        trained, frozen = nn.Linear(3, 2).double(), nn.Linear(3, 2).double().requires_grad_(False)
        inputs = torch.randn(5, 3, dtype=torch.float64)

        def function(values: Tensor) -> tuple[Tensor, Tensor]:
            return trained(values), frozen(values)

        outputs = recompute(function, nn.ModuleList([trained, frozen]), inputs)
        (outputs[0] * outputs[1].detach()).sum().backward()
        plain = function(inputs)
        (expected,) = torch.autograd.grad((plain[0] * plain[1]).sum(), trained.weight)
        torch.testing.assert_close(trained.weight.grad, expected)
        self.assertIsNone(frozen.weight.grad)

    def test_saves_no_activations(self) -> None:
        model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(8)])
        sizes: list[int] = []

        def save(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            recompute(lambda values: (model(values),), model, torch.randn(64, 16))
        self.assertEmpty(sizes)


if __name__ == "__main__":
    absltest.main()
