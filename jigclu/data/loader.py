"""Worker processes that turn data sets into batches."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jigclu.data.crops import CropDataset, CropSample
from jigclu.data.images import LabeledImage, RandomCropDataset
from jigclu.data.sampler import GlobalBatchSampler


class Batch(NamedTuple):
    """The crops that one rank reads for one step.

    crops: uint8 [local_batch, crops, 3, size, size].
    unreadable: images skipped while reading them.
    """

    crops: Tensor
    unreadable: int


class LabeledBatch(NamedTuple):
    """Labeled images, as `LabeledImage` with a leading dimension.

    image: uint8 [batch, 3, height, width].
    label: int64 [batch], -1 where unlabeled.
    image_index: int64 [batch], in the source.
    """

    image: Tensor
    label: Tensor
    image_index: Tensor


def crop_loader(
    dataset: CropDataset,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> "DataLoader[Batch]":
    """Reads the sampler's batches of crops, in its order, whatever the number of workers.

    Args:
      dataset: of crops; pickled to the workers.
      sampler: of this rank's batches, over all epochs.
      workers: processes; 0 reads in this one. PyTorch gives each one thread.
      prefetch: batches that each worker keeps ready.
      pin_memory: whether batches land in page-locked memory (CUDA).
    """
    return _training_loader(dataset, sampler, workers, prefetch, pin_memory, collate_crops)


def labeled_loader(
    dataset: RandomCropDataset,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    pin_memory: bool,
) -> "DataLoader[LabeledBatch]":
    """Reads the sampler's batches of labeled images; the arguments are those of `crop_loader`."""
    return _training_loader(dataset, sampler, workers, prefetch, pin_memory, collate_images)


def _training_loader(
    dataset: Dataset[Any],
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    pin_memory: bool,
    collate: Callable[[list[Any]], Any],
) -> "DataLoader[Any]":
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_end_with_parent,
        multiprocessing_context=worker_context() if workers else None,
    )


def image_loader(
    dataset: Dataset[LabeledImage], batch_size: int, workers: int, prefetch: int
) -> "DataLoader[LabeledBatch]":
    """Reads every image once and in order; the last batch may be smaller.

    The data are an `ImageDataset` or a part of one.
    """
    untyped: Dataset[Any] = dataset  # The collation turns its samples into a LabeledBatch.
    return DataLoader(
        untyped,
        batch_size=batch_size,
        collate_fn=collate_images,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_end_with_parent,
        multiprocessing_context=worker_context() if workers else None,
    )


def collate_crops(samples: list[CropSample]) -> Batch:
    """Stacks samples to a Batch; within a worker straight into shared memory."""
    return Batch(
        crops=default_collate([sample.crops for sample in samples]),
        unreadable=sum(sample.unreadable for sample in samples),
    )


def collate_images(samples: list[LabeledImage]) -> LabeledBatch:
    """Stacks samples to a LabeledBatch; within a worker straight into shared memory."""
    return LabeledBatch(*default_collate([tuple(sample) for sample in samples]))


def _end_with_parent(worker: int) -> None:
    """Ends this worker when the process that reads from it is killed.

    torch watches the parent, but that of a worker is the fork server, which
    lives as long as its workers.
    """
    del worker
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_context() -> BaseContext:
    """Returns how processes that read images are started."""
    # A plain fork copies the locks of the threads of CUDA, NCCL and OpenMP, held or
    # not. The fork server has none of them, and imports torch once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jigclu.data.crops"])
    return context
