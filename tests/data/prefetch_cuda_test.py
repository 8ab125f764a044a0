"""Copies of batches to a GPU overlap with its work."""

from tests import cuda_needed  # noqa: F401  # isort: skip
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.data import prefetch
from jigclu.data.loader import Batch

CUDA = torch.device("cuda")
_CYCLES = 2 * 10**9  # About a second on any GPU, far longer than the copies.


def batches(count: int) -> list[Batch]:
    """Returns batches in page-locked memory, which is not allocated while the device computes."""
    return [
        Batch(torch.full((8, 4, 3, 32, 32), number, dtype=torch.uint8).pin_memory(), 0)
        for number in range(count)
    ]


class PrefetchCudaTest(absltest.TestCase):
    def test_the_next_batch_is_copied_while_the_device_computes(self) -> None:
        taken = prefetch.prefetch_to_device(batches(3), CUDA)
        next(taken)
        torch.cuda._sleep(_CYCLES)
        computed = torch.cuda.current_stream().record_event()
        copied = torch.cuda.Event()
        original = torch.cuda.Stream.record_event

        def recorded(stream: torch.cuda.Stream, event: torch.cuda.Event | None = None) -> object:
            found = original(stream, event)
            copied.record(stream)
            return found

        with mock.patch.object(torch.cuda.Stream, "record_event", recorded):
            next(taken)
        copied.synchronize()
        self.assertFalse(computed.query(), "the copy waited for the computation")

    def test_batches_arrive_whole_and_in_order(self) -> None:
        for number, batch in enumerate(prefetch.prefetch_to_device(batches(4), CUDA)):
            # Fills the memory of batches that were freed too early.
            torch.full_like(batch.crops, 255)
            self.assertEqual(batch.crops.unique().tolist(), [number])
            self.assertEqual(batch.crops.device.type, "cuda")
        self.assertEqual(number, 3)


if __name__ == "__main__":
    absltest.main()
