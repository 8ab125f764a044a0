"""Tests of jigclu.models.batch_norm, on one process and on two gloo ranks."""

import functools
from typing import NamedTuple

import torch
from absl.testing import absltest
from torch import Tensor, nn

from jigclu.models.batch_norm import BatchNorm, batch_norm
from jigclu.system import collectives
from tests.ranks import run_on_ranks

WORLD_SIZE = 2
CHANNELS = 3
STEPS = 2
PUBLISHED = functools.partial(batch_norm, momentum=0.1, epsilon=1e-5)


class Batch(NamedTuple):
    """Images of one step on all ranks, and the gradient with respect to the outputs."""

    images: Tensor
    gradient: Tensor


class Result(NamedTuple):
    """Results after STEPS steps; outputs and gradients are of the last step."""

    outputs: Tensor
    images_gradient: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    running_mean: Tensor
    running_var: Tensor
    evaluated: Tensor


def batches() -> list[Batch]:
    """Means are far from 0, and so different that statistics of one rank would be wrong."""
    generator = torch.Generator().manual_seed(0)
    shape = (2 * WORLD_SIZE, CHANNELS, 5, 4)
    made = []
    for step in range(STEPS):
        images, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
        images = images * torch.tensor([1.0, 3.0, 0.5]).view(1, -1, 1, 1)
        images += torch.tensor([20.0, -30.0, 0.0]).view(1, -1, 1, 1)
        images[2:] += 4.0 + step
        made.append(Batch(images, gradient))
    return made


def train(norm: BatchNorm | nn.BatchNorm2d, made: list[Batch]) -> Result:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    for images, gradient in made:
        norm.zero_grad()
        images = images.clone().requires_grad_()
        outputs = norm(images)
        outputs.backward(gradient)
    gradients = (images.grad, norm.weight.grad, norm.bias.grad)
    statistics = (norm.running_mean, norm.running_var)
    evaluated = norm.eval()(images)
    return Result._make((outputs.detach(), *gradients, *statistics, evaluated.detach()))


def expected_result() -> Result:
    """The result of torch's BatchNorm2d on the whole batch, in float64."""
    double = [Batch(*(value.double() for value in batch)) for batch in batches()]
    result = train(nn.BatchNorm2d(CHANNELS).double(), double)
    return Result._make(value.float() for value in result)


def train_on_rank() -> tuple[tuple[Tensor, ...], list[bool], Tensor]:
    """Returns a rank's `Result`, which arguments are unchanged, and the compilation error."""
    rank = collectives.rank()
    made = [Batch(*(value[2 * rank : 2 * rank + 2] for value in batch)) for batch in batches()]
    arguments = [made[0].images, *(torch.full((CHANNELS,), 0.5) for _ in range(4))]
    before = [value.clone() for value in arguments]
    outputs, *_ = PUBLISHED(*arguments)
    unchanged = list(map(torch.equal, arguments, before))
    compiled = torch.compile(PUBLISHED, fullgraph=True, backend="aot_eager")
    difference = compiled(*arguments)[0] - outputs
    return tuple(train(BatchNorm(CHANNELS), made)), unchanged, difference.abs().max()


class BatchNormTest(absltest.TestCase):
    def assert_results_close(self, actual: Result, expected: Result) -> None:
        for name, value, wanted in zip(Result._fields, actual, expected, strict=True):
            with self.subTest(name):
                # Relative to the largest element: those near 0 are differences of large ones.
                tolerance = 1e-5 * wanted.abs().max().item()
                torch.testing.assert_close(value, wanted, rtol=0, atol=tolerance)

    def test_one_rank_equals_torch(self) -> None:
        self.assert_results_close(train(BatchNorm(CHANNELS), batches()), expected_result())

    def test_two_ranks_equal_one_process_on_the_whole_batch(self) -> None:
        ranks = run_on_ranks(train_on_rank, WORLD_SIZE)
        results = [Result(*result) for result, _, _ in ranks]
        for _, unchanged, difference in ranks:
            self.assertEqual(unchanged, [True] * 5)
            self.assertLess(difference, 1e-5)
        self.assertTrue(torch.equal(results[0].running_var, results[1].running_var))
        together = results[0]._replace(
            **{
                name: torch.cat([getattr(result, name) for result in results])
                for name in ("outputs", "images_gradient", "evaluated")
            },
            # Each rank has the gradient of its own images; DistributedDataParallel adds them up.
            weight_gradient=results[0].weight_gradient + results[1].weight_gradient,
            bias_gradient=results[0].bias_gradient + results[1].bias_gradient,
        )
        self.assert_results_close(together, expected_result())

    def test_arguments_are_unchanged_on_one_rank(self) -> None:
        arguments = [batches()[0].images, *(torch.full((CHANNELS,), 0.5) for _ in range(4))]
        copies = [value.clone() for value in arguments]
        _, mean, var = PUBLISHED(*arguments)
        torch.testing.assert_close(arguments, copies, rtol=0, atol=0)
        self.assertFalse(torch.equal(mean, copies[3]))
        self.assertFalse(torch.equal(var, copies[4]))

    def test_evaluation_does_not_update_statistics(self) -> None:
        norm = BatchNorm(CHANNELS).eval()
        images = batches()[0].images
        torch.testing.assert_close(norm(images), images / (1 + 1e-5) ** 0.5)
        self.assertEqual(norm.running_mean.tolist(), [0.0] * CHANNELS)
        self.assertEqual(norm.running_var.tolist(), [1.0] * CHANNELS)

    def test_keeps_dtype_and_memory_format(self) -> None:
        images = batches()[0].images.bfloat16().contiguous(memory_format=torch.channels_last)
        outputs = BatchNorm(CHANNELS)(images)
        self.assertEqual(outputs.dtype, torch.bfloat16)
        self.assertTrue(outputs.is_contiguous(memory_format=torch.channels_last))


if __name__ == "__main__":
    absltest.main()
