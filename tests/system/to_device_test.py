"""Tests of jigclu.system.to_device."""

from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.system import to_device


class ToDeviceTest(absltest.TestCase):
    def test_copies_to_a_gpu_from_page_locked_memory_without_waiting(self) -> None:
        moved = []

        def to(values: Tensor, device: str, non_blocking: bool) -> Tensor:
            moved.append((values, device, non_blocking))
            return values

        values, pinned = torch.arange(3), torch.arange(3)
        with (
            mock.patch.object(Tensor, "pin_memory", lambda _: pinned),
            mock.patch.object(Tensor, "to", to),
        ):
            to_device.to_device(values, "cuda")
            to_device.to_device(values, torch.device("cpu"))
        self.assertIs(moved[0][0], pinned)
        self.assertIs(moved[1][0], values)
        self.assertEqual(moved[0][1:], ("cuda", True))

    def test_per_channel_values_have_the_shape_of_channels(self) -> None:
        values = to_device.per_channel((0.5, -1.0, 3.0), torch.device("cpu"))
        expected = torch.tensor([0.5, -1.0, 3.0]).view(3, 1, 1)
        torch.testing.assert_close(values, expected, rtol=0, atol=0)


if __name__ == "__main__":
    absltest.main()
