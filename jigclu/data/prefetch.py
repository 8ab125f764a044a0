"""Batches to the device that trains; to a GPU each is copied while the step before it computes."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from jigclu.data.loader import Batch, LabeledBatch

AnyBatch = TypeVar("AnyBatch", Batch, LabeledBatch)


def prefetch_to_device(batches: Iterable[AnyBatch], device: torch.device) -> Iterator[AnyBatch]:
    """Yields the same batches in the same order, their tensors on a device.

    Copies to a GPU are queued on a stream of their own, one batch ahead of the one that is
    yielded; nothing waits for them but what is computed with the batch.

    Args:
      batches: on the CPU, for a GPU in page-locked memory.
      device: where to.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _move(batch, device)
        return
    stream = torch.cuda.Stream(device)
    ahead: list[tuple[AnyBatch, torch.cuda.Event]] = []
    for batch in batches:
        with torch.cuda.stream(stream):
            ahead.append((_move(batch, device), stream.record_event()))
        if len(ahead) == 2:
            yield _receive(*ahead.pop(0))
    for last in ahead:
        yield _receive(*last)


def _move(batch: AnyBatch, device: torch.device) -> AnyBatch:
    return type(batch)._make(
        value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for value in batch
    )


def _receive(batch: AnyBatch, copied: torch.cuda.Event) -> AnyBatch:
    computing = torch.cuda.current_stream()
    computing.wait_event(copied)
    for value in batch:
        if isinstance(value, Tensor):
            # Its memory belongs to the copying stream, which must not fill it anew too early.
            value.record_stream(computing)
    return batch
