"""Tests of jigclu.data.prefetch; the order of what a GPU is told, by a stand-in for it."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.data import prefetch
from jigclu.data.loader import Batch


def batches(count: int, told: list[str]) -> Iterator[Batch]:
    for number in range(count):
        told.append(f"read {number}")
        crops = torch.full((2, 4, 3, 1, 1), number, dtype=torch.uint8)
        yield Batch(crops, number)


class FakeGpu:
    """Streams and events that only note what they are told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told
        self.copies = 0

    def patched(self) -> Any:
        return mock.patch.multiple(
            torch.cuda,
            Stream=lambda device: self,
            stream=lambda stream: mock.MagicMock(),
            current_stream=lambda: self,
        )

    def record_event(self) -> int:
        self.told.append(f"copy {self.copies}")
        self.copies += 1
        return self.copies - 1

    def wait_event(self, event: int) -> None:
        self.told.append(f"wait for {event}")


class PrefetchTest(absltest.TestCase):
    def test_on_the_cpu_batches_are_passed_on_as_they_come(self) -> None:
        told: list[str] = []
        for number, batch in enumerate(
            prefetch.prefetch_to_device(batches(2, told), torch.device("cpu"))
        ):
            told.append(f"take {number}")
            self.assertEqual(batch.crops.unique().tolist(), [number])
            self.assertEqual(batch.unreadable, number)
        self.assertEqual(told, ["read 0", "take 0", "read 1", "take 1"])

    def test_a_gpu_gets_the_next_batch_before_this_one_is_taken(self) -> None:
        told: list[str] = []
        recorded = []
        gpu = FakeGpu(told)
        with (
            gpu.patched(),
            mock.patch.object(Tensor, "to", lambda self, device, non_blocking: self),
            mock.patch.object(Tensor, "record_stream", lambda self, stream: recorded.append(self)),
        ):
            taken = prefetch.prefetch_to_device(batches(3, told), torch.device("cuda"))
            for number, batch in enumerate(taken):
                told.append(f"take {number}")
                self.assertEqual(batch.crops.unique().tolist(), [number])
        self.assertEqual(
            told,
            [
                *("read 0", "copy 0", "read 1", "copy 1", "wait for 0", "take 0"),
                *("read 2", "copy 2", "wait for 1", "take 1", "wait for 2", "take 2"),
            ],
        )
        self.assertEqual([int(crops[0, 0, 0, 0, 0]) for crops in recorded], [0, 1, 2])


if __name__ == "__main__":
    absltest.main()
