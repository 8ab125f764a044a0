"""The order of images: batches per step and rank."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from jigclu.system import seeds
from jigclu.system.errors import check


def check_batch_size(batch_size: int, images: int, world_size: int) -> None:
    """Raises UserError unless a global batch fits the images and divides evenly over ranks."""
    check(batch_size <= images, "batch_size", batch_size, f"at most {images}, the training images")
    nearest = max(1, round(batch_size / world_size)) * world_size
    expected = f"a multiple of {world_size}, the number of processes, such as {nearest}"
    check(batch_size % world_size == 0, "batch_size", batch_size, expected)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Returns the steps of one epoch; the incomplete last batch is dropped."""
    return images // batch_size


def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """Returns the order of images in one epoch, int64 [length]; depends only on (seed, epoch)."""
    return torch.randperm(length, generator=seeds.image_order(seed, epoch))


class GlobalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields this rank's contiguous slice of the global batch of each step.

    The global batch depends only on (seed, step): any number of ranks sees the same images, and
    a resumed run continues where it stopped, even within an epoch. An item is an (epoch, index)
    pair for `CropDataset` or `RandomCropDataset`.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start_step: int,
        total_steps: int,
    ) -> None:
        """Plans the steps [start_step, total_steps).

        Args:
          length: images in the data set.
          batch_size: images in the global batch, a multiple of `world_size`.
          rank: of this process, in [0, world_size).
          world_size: number of processes.
          seed: of the run.
          start_step: first step to yield, from 0.
          total_steps: steps of the whole run, over all epochs.
        """
        check_batch_size(batch_size, length, world_size)
        self._steps_per_epoch = steps_per_epoch(length, batch_size)
        self._length = length
        self._batch_size = batch_size
        self._local = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._seed = seed
        self._steps = range(start_step, total_steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ordered_epoch = -1
        for step in self._steps:
            epoch, position = divmod(step, self._steps_per_epoch)
            if epoch != ordered_epoch:
                order = epoch_order(self._seed, epoch, self._length)
                ordered_epoch = epoch
            start = position * self._batch_size
            batch = order[start : start + self._batch_size]
            yield [(epoch, index) for index in batch[self._local].tolist()]
