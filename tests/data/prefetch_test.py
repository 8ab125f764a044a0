"""Tests of jigclu.data.prefetch; the order of GPU operations with a fake GPU."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.data import prefetch
from jigclu.data.loader import Batch


def batches(count: int, log: list[str]) -> Iterator[Batch]:
    for number in range(count):
        log.append(f"read {number}")
        crops = torch.full((2, 4, 3, 1, 1), number, dtype=torch.uint8)
        yield Batch(crops, {number: "corrupt"}, ())


class FakeGpu:
    """A CUDA stream and its events that only log operations."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.copies = 0

    def patch(self) -> Any:
        return mock.patch.multiple(
            torch.cuda,
            Stream=lambda device: self,
            stream=lambda stream: mock.MagicMock(),
            current_stream=lambda: self,
        )

    def record_event(self) -> int:
        self.log.append(f"copy {self.copies}")
        self.copies += 1
        return self.copies - 1

    def wait_event(self, event: int) -> None:
        self.log.append(f"wait for {event}")


class PrefetchTest(absltest.TestCase):
    def test_cpu_batches_are_yielded_as_they_are_read(self) -> None:
        log: list[str] = []
        for number, batch in enumerate(
            prefetch.prefetch_to_device(batches(2, log), torch.device("cpu"))
        ):
            log.append(f"take {number}")
            self.assertEqual(batch.crops.unique().tolist(), [number])
            self.assertEqual(batch.unreadable, {number: "corrupt"})
        self.assertEqual(log, ["read 0", "take 0", "read 1", "take 1"])

    def test_next_batch_is_copied_to_the_gpu_before_this_one_is_yielded(self) -> None:
        log: list[str] = []
        recorded = []
        gpu = FakeGpu(log)
        with (
            gpu.patch(),
            mock.patch.object(Tensor, "to", lambda self, device, non_blocking: self),
            mock.patch.object(Tensor, "record_stream", lambda self, stream: recorded.append(self)),
        ):
            taken = prefetch.prefetch_to_device(batches(3, log), torch.device("cuda"))
            for number, batch in enumerate(taken):
                log.append(f"take {number}")
                self.assertEqual(batch.crops.unique().tolist(), [number])
        self.assertEqual(
            log,
            [
                *("read 0", "copy 0", "read 1", "copy 1", "wait for 0", "take 0"),
                *("read 2", "copy 2", "wait for 1", "take 1", "wait for 2", "take 2"),
            ],
        )
        self.assertEqual([int(crops[0, 0, 0, 0, 0]) for crops in recorded], [0, 1, 2])


if __name__ == "__main__":
    absltest.main()
