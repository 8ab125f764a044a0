"""Batches to the device that trains; to a GPU each is copied while the step before it computes."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from jigclu.data.loader import Batch, LabeledBatch

AnyBatch = TypeVar("AnyBatch", Batch, LabeledBatch)


def prefetch_to_device(
    batches: Iterable[tuple[AnyBatch, float]], device: torch.device
) -> Iterator[tuple[AnyBatch, float]]:
    """Yields the same batches in the same order, their tensors on a device.

    Copies to a GPU are queued on a stream of their own, one batch ahead of the one that is
    yielded; nothing waits for them but what is computed with the batch.

    Args:
      batches: on the CPU, for a GPU in page-locked memory; and a number each.
      device: where to.
    """
    if device.type != "cuda":
        for batch, number in batches:
            yield _moved(batch, device), number
        return
    stream = torch.cuda.Stream(device)
    ahead: list[tuple[AnyBatch, float, torch.cuda.Event]] = []
    for batch, number in batches:
        with torch.cuda.stream(stream):
            ahead.append((_moved(batch, device), number, stream.record_event()))
        if len(ahead) == 2:
            yield _received(*ahead.pop(0))
    for last in ahead:
        yield _received(*last)


def _moved(batch: AnyBatch, device: torch.device) -> AnyBatch:
    return type(batch)._make(
        value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for value in batch
    )


def _received(batch: AnyBatch, number: float, copied: torch.cuda.Event) -> tuple[AnyBatch, float]:
    computing = torch.cuda.current_stream()
    computing.wait_event(copied)
    for value in batch:
        if isinstance(value, Tensor):
            # Its memory belongs to the copying stream, which must not fill it anew too early.
            value.record_stream(computing)
    return batch, number
