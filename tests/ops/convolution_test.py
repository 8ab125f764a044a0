"""Convolution by a matrix product, compared with torch's convolution."""

import torch
from absl.testing import absltest, parameterized
from torch.nn import functional

from jigclu.ops.convolution import convolve_by_product, output_size


class ConvolveByProductTest(parameterized.TestCase):
    @parameterized.product(
        size=((1, 1), (2, 2), (3, 4), (5, 2)),
        kernel=(1, 3, 5),
        stride=(1, 2, 3),
    )
    def test_equals_torch(self, size: tuple[int, int], kernel: int, stride: int) -> None:
        torch.manual_seed(0)
        images = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(6, 4, kernel, kernel, dtype=torch.float64, requires_grad=True)
        padding = kernel // 2
        expected = functional.conv2d(images, weight, stride=stride, padding=padding)
        actual = convolve_by_product(images, weight, stride, padding)
        torch.testing.assert_close(actual, expected)
        gradient = torch.randn_like(expected)
        inputs = (images, weight)
        torch.testing.assert_close(
            torch.autograd.grad(actual, inputs, gradient),
            torch.autograd.grad(expected, inputs, gradient),
        )

    def test_without_padding(self) -> None:
        images, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
        expected = functional.conv2d(images, weight, stride=2)
        torch.testing.assert_close(convolve_by_product(images, weight, 2, 0), expected)

    def test_autocast(self) -> None:
        images, weight = torch.randn(2, 3, 2, 2), torch.randn(4, 3, 3, 3)
        with torch.autocast("cpu", torch.bfloat16):
            actual = convolve_by_product(images, weight, 1, 1)
            expected = functional.conv2d(images, weight, padding=1)
        self.assertEqual(actual.dtype, torch.bfloat16)
        torch.testing.assert_close(actual, expected)

    def test_channels_are_last_in_memory(self) -> None:
        actual = convolve_by_product(torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3), 1, 1)
        self.assertTrue(actual.is_contiguous(memory_format=torch.channels_last))


class OutputSizeTest(parameterized.TestCase):
    # By hand: windows that start at 0, stride, 2 * stride, ... and fit.
    @parameterized.parameters((64, 7, 2, 3, 32), (4, 3, 2, 1, 2), (1, 3, 1, 1, 1), (5, 3, 1, 0, 3))
    def test_by_hand(self, size: int, kernel: int, stride: int, padding: int, new: int) -> None:
        self.assertEqual(output_size(size, kernel, stride, padding), new)


if __name__ == "__main__":
    absltest.main()
