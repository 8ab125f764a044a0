"""Prefetches batches to the training device on a side CUDA stream."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from jigclu.data.loader import Batch, LabeledBatch, MaskedBatch

AnyBatch = TypeVar("AnyBatch", Batch, LabeledBatch, MaskedBatch)


def prefetch_to_device(batches: Iterable[AnyBatch], device: torch.device) -> Iterator[AnyBatch]:
    """Yields the batches in order, with their tensors on a device.

    Each batch is copied to a GPU on a separate stream while the previous step computes. Only
    work that uses the batch waits for its copy.

    Args:
      batches: on the CPU; in page-locked memory if the device is a GPU.
      device: target of the copies.
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
            # Keeps the copying stream, which owns the memory, from reusing it too early.
            value.record_stream(computing)
    return batch
