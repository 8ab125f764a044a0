"""Tests of jigclu.ops.normalize."""

import math
import re

import torch
from absl.testing import absltest, parameterized

from jigclu.ops import normalize
from jigclu.system.errors import UserError


class NormalizeTest(parameterized.TestCase):
    def test_by_hand(self) -> None:
        images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
        actual = normalize.normalize(images, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
        expected = torch.tensor([-2.0, -1.0, 7.0]).view(1, 3, 1, 1)
        torch.testing.assert_close(actual, expected)

    def test_pooling_is_in_float32(self) -> None:
        maps = torch.tensor([[[[256.0, 1.0], [1.0, 2.0]]]], dtype=torch.bfloat16)
        torch.testing.assert_close(normalize.pool(maps), torch.tensor([[65.0]]), rtol=0, atol=0)

    @parameterized.parameters(
        ((0.5, 0.4), (0.2, 0.2, 0.2), "mean is (0.5, 0.4); it must be three numbers"),
        ((0.5, 0.4, 0.3), (0.2, 0.2), "std is (0.2, 0.2); it must be three numbers above 0"),
        ((0.5, 0.4, 0.3), (0.2, 0.2, 0.0), "std is (0.2, 0.2, 0.0)"),
        ((0.5, 0.4, 0.3), (0.2, 0.2, math.nan), "std is (0.2, 0.2, nan)"),
    )
    def test_rejects_other_than_three_channels_or_an_empty_std(
        self, mean: tuple[float, ...], std: tuple[float, ...], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, re.escape(message)):
            normalize.check_normalization(mean, std)


if __name__ == "__main__":
    absltest.main()
