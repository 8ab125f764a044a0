"""Worker processes that turn data sets into batches."""

import multiprocessing
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jigclu.data.patches import LabelledImage, PatchDataset, PatchSample
from jigclu.data.sampler import GlobalBatchSampler


class Batch(NamedTuple):
    """The patches that one rank reads for one step.

    patches: uint8 [local_batch, grid**2, 3, size, size].
    indices: int64 [local_batch], as asked for by the sampler.
    unreadable: images skipped while reading them.
    """

    patches: Tensor
    indices: Tensor
    unreadable: int


def patch_loader(
    dataset: PatchDataset,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> "DataLoader[Batch]":
    """Reads the sampler's batches, in its order, whatever the number of workers.

    Args:
      dataset: of patches; pickled to the workers.
      sampler: of this rank's batches, over all epochs.
      workers: processes; 0 reads in this one. PyTorch gives each one thread.
      prefetch: batches that each worker keeps ready.
      pin_memory: whether batches land in page-locked memory (CUDA).
    """
    untyped: Dataset[Any] = dataset  # The collation turns its samples into a Batch.
    return DataLoader(
        untyped,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_patches,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        multiprocessing_context=_context() if workers else None,
    )


def image_loader(
    dataset: Dataset[LabelledImage], batch_size: int, workers: int
) -> "DataLoader[LabelledImage]":
    """Reads every image once and in order; the last batch may be smaller.

    The data are an `ImageDataset` or a part of one; a batch is a LabelledImage
    of uint8 [batch, 3, crop, crop], int64 [batch] and int64 [batch].
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        multiprocessing_context=_context() if workers else None,
    )


def collate_patches(samples: list[PatchSample]) -> Batch:
    """Stacks samples to a Batch; within a worker straight into shared memory."""
    return Batch(
        patches=default_collate([sample.patches for sample in samples]),
        indices=default_collate([sample.image_index for sample in samples]),
        unreadable=sum(sample.unreadable for sample in samples),
    )


def _context() -> BaseContext:
    # A plain fork copies the locks of the threads of CUDA, NCCL and OpenMP, held or
    # not. The fork server has none of them, and imports torch once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jigclu.data.patches"])
    return context
