"""Tests of jigclu.ops.normalize."""

import torch
from absl.testing import absltest

from jigclu.ops import normalize


class NormalizeTest(absltest.TestCase):
    def test_by_hand(self) -> None:
        images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
        actual = normalize.normalize(images, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
        expected = torch.tensor([-2.0, -1.0, 7.0]).view(1, 3, 1, 1)
        torch.testing.assert_close(actual, expected)

    def test_pooling_is_in_float32(self) -> None:
        maps = torch.tensor([[[[256.0, 1.0], [1.0, 2.0]]]], dtype=torch.bfloat16)
        torch.testing.assert_close(normalize.pool(maps), torch.tensor([[65.0]]), rtol=0, atol=0)


if __name__ == "__main__":
    absltest.main()
