"""Copies of batches to a GPU overlap with computation."""

from tests import cuda_needed  # noqa: F401  # isort: skip
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.data import prefetch
from jigclu.data.loader import Batch

CUDA = torch.device("cuda")
_CYCLES = 2 * 10**9  # About a second on any GPU, far longer than a copy.


def batches(count: int) -> list[Batch]:
    """Returns batches in page-locked memory, allocated before the device computes."""
    return [
        Batch(torch.full((8, 4, 3, 32, 32), number, dtype=torch.uint8).pin_memory(), {}, ())
        for number in range(count)
    ]


class PrefetchCudaTest(absltest.TestCase):
    def test_next_batch_is_copied_while_the_device_computes(self) -> None:
        yielded = prefetch.prefetch_to_device(batches(3), CUDA)
        next(yielded)
        torch.cuda._sleep(_CYCLES)
        computed = torch.cuda.current_stream().record_event()
        copied = torch.cuda.Event()
        original = torch.cuda.Stream.record_event

        def record(stream: torch.cuda.Stream, event: torch.cuda.Event | None = None) -> object:
            result = original(stream, event)
            copied.record(stream)
            return result

        with mock.patch.object(torch.cuda.Stream, "record_event", record):
            next(yielded)
        copied.synchronize()
        self.assertFalse(computed.query(), "the copy waited for the computation")

    def test_batches_arrive_intact_and_in_order(self) -> None:
        for number, batch in enumerate(prefetch.prefetch_to_device(batches(4), CUDA)):
            # Would overwrite the memory of a batch that was freed too early.
            torch.full_like(batch.crops, 255)
            self.assertEqual(batch.crops.unique().tolist(), [number])
            self.assertEqual(batch.crops.device.type, "cuda")
        self.assertEqual(number, 3)


if __name__ == "__main__":
    absltest.main()
