"""Data loaders: worker processes that read batches."""

import atexit
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, util
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from jigclu.data.crops import CropDataset, CropSample
from jigclu.data.images import LabeledImage, RandomCropDataset
from jigclu.data.sampler import GlobalBatchSampler
from jigclu.data.segmentation import MaskedCrops, MaskedImage
from jigclu.system import signals
from jigclu.system.errors import UserError

# Characters of a temporary folder that leave enough for the names of folder and socket in it.
_LONGEST_SOCKET_FOLDER = 75
_CHECKED = 32  # Items of a batch of `check_loader`.


class _Loader(DataLoader[Any]):
    """A loader that reports killed and stopped workers, and too little shared memory, in a line."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        if not self.num_workers:
            yield from batches
            return
        while True:
            # Before it can read a batch, torch waits for its worker, without any timeout.
            stopped: list[int] = []
            timer = threading.Timer(self.timeout, _kill_stopped, (stopped,))
            timer.daemon = True
            timer.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                _kill_stopped(stopped)
                message = _worker_failure(error, self.timeout, stopped)
                if message is None:
                    raise
                raise UserError(message) from error
            finally:
                timer.cancel()
            yield batch


def _kill_stopped(stopped: list[int]) -> None:
    """Kills stopped worker processes, and adds their numbers to a list."""
    for child in multiprocessing.active_children():
        if child.daemon and _is_stopped(child):
            stopped.append(child.pid or 0)
            child.kill()


def _worker_failure(error: Exception, timeout: float, stopped: list[int]) -> str | None:
    """Describes an error of a DataLoader about its workers; None for other errors."""
    if stopped:
        return (
            f"worker process {stopped[0]} was stopped, and delivered no batch for {timeout:g} "
            "seconds: find out what sent it SIGSTOP, and run the same command again"
        )
    text = str(error)
    if "timed out after" in text:
        return (
            f"worker processes have delivered no batch for {timeout:g} seconds: check whether the "
            "storage of the images responds, or bind a larger loading.timeout"
        )
    if "shared memory" in text or re.search(r"file </torch_.*No space left", text):
        total = shutil.disk_usage("/dev/shm").total / 2**20 if os.path.isdir("/dev/shm") else 0.0
        return (
            f"worker processes pass batches through shared memory, and /dev/shm, which has "
            f"{total:,.1f} MiB, is full: enlarge it (docker run --shm-size=8g), or bind "
            "loading.workers = 0"
        )
    killed = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text)
    # A worker that dies while it hands over a batch breaks the connection.
    if killed or isinstance(error, ConnectionError | EOFError):
        which = f"worker process {killed[1]}" if killed else "a worker process"
        return (
            f"{which} was killed, perhaps because memory or /dev/shm is full: bind a smaller "
            "loading.workers or loading.prefetch, and run the same command again"
        )
    return None


def _is_stopped(process: BaseProcess) -> bool:
    """Returns whether SIGSTOP or a debugger has stopped a process, as Linux tells."""
    try:
        status = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in "Tt"


class Batch(NamedTuple):
    """The crops of one rank for one step.

    crops: uint8 [local_batch, crops, 3, size, size].
    unreadable: why images cannot be read in whose place others are here, by index.
    one_color: indices of images whose pixels are all the same.
    """

    crops: Tensor
    unreadable: dict[int, str]
    one_color: tuple[int, ...]


class LabeledBatch(NamedTuple):
    """A batch of `LabeledImage`.

    image: uint8 [batch, 3, size, size].
    label: int64 [batch], -1 if unlabeled.
    image_index: int64 [batch], index in the source.
    one_color: indices in the source of images whose pixels are all the same.
    """

    image: Tensor
    label: Tensor
    image_index: Tensor
    one_color: tuple[int, ...]


class MaskedBatch(NamedTuple):
    """A batch of `MaskedImage`.

    image: uint8 [batch, 3, height, width].
    mask: uint8 [batch, height, width], class numbers or `IGNORED`.
    """

    image: Tensor
    mask: Tensor


def crop_loader(
    dataset: CropDataset,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    timeout: float,
    pin_memory: bool,
) -> "DataLoader[Batch]":
    """Returns a loader of the sampler's batches; their order does not depend on the workers.

    Args:
      dataset: pickled to the workers.
      sampler: batches of this rank over all epochs.
      workers: worker processes, each with one thread; 0 reads in this process.
      prefetch: batches that each worker keeps ready.
      timeout: seconds to wait for a batch of the workers.
      pin_memory: whether batches are stored in page-locked memory, for copies to a GPU.
    """
    return _training_loader(dataset, sampler, workers, prefetch, timeout, pin_memory, collate_crops)


def labeled_loader(
    dataset: RandomCropDataset,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    timeout: float,
    pin_memory: bool,
) -> "DataLoader[LabeledBatch]":
    """Returns a loader of the sampler's batches of labeled images; see `crop_loader`."""
    return _training_loader(
        dataset, sampler, workers, prefetch, timeout, pin_memory, collate_images
    )


def masked_loader(
    dataset: MaskedCrops,
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    timeout: float,
    pin_memory: bool,
) -> "DataLoader[MaskedBatch]":
    """Returns a loader of the sampler's batches of images with masks; see `crop_loader`."""
    return _training_loader(
        dataset, sampler, workers, prefetch, timeout, pin_memory, collate_masked
    )


def _training_loader(
    dataset: Dataset[Any],
    sampler: GlobalBatchSampler,
    workers: int,
    prefetch: int,
    timeout: float,
    pin_memory: bool,
    collate: Callable[[list[Any]], Any],
) -> "DataLoader[Any]":
    return _Loader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if workers else None,
        timeout=timeout if workers else 0,
        persistent_workers=workers > 0,
        worker_init_fn=set_up_worker,
        multiprocessing_context=worker_context() if workers else None,
    )


def image_loader(
    dataset: Dataset[LabeledImage], batch_size: int, workers: int, prefetch: int, timeout: float
) -> "DataLoader[LabeledBatch]":
    """Returns a loader of every image once and in order; the last batch may be smaller."""
    return _ordered_loader(dataset, batch_size, workers, prefetch, timeout, collate_images)


def single_masked_loader(
    dataset: Dataset[MaskedImage], workers: int, prefetch: int, timeout: float
) -> "DataLoader[MaskedBatch]":
    """Returns a loader of every image once and in order, one per batch, since sizes differ."""
    return _ordered_loader(dataset, 1, workers, prefetch, timeout, collate_masked)


def check_loader(dataset: Dataset[Any], workers: int, timeout: float) -> "DataLoader[list[Any]]":
    """Returns a loader of all items in order, in lists of the items themselves."""
    return _ordered_loader(dataset, _CHECKED, workers, 2, timeout, list)


def _ordered_loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    prefetch: int,
    timeout: float,
    collate: Callable[[list[Any]], Any],
) -> "DataLoader[Any]":
    return _Loader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        timeout=timeout if workers else 0,
        worker_init_fn=set_up_worker,
        multiprocessing_context=worker_context() if workers else None,
    )


def collate_crops(samples: list[CropSample]) -> Batch:
    """Stacks samples into a Batch, in a worker directly in shared memory."""
    return Batch(
        crops=default_collate([sample.crops for sample in samples]),
        unreadable={k: why for sample in samples for k, why in sample.unreadable.items()},
        one_color=tuple(index for sample in samples for index in sample.one_color),
    )


def collate_images(samples: list[LabeledImage]) -> LabeledBatch:
    """Stacks samples into a LabeledBatch, in a worker directly in shared memory."""
    image, label, image_index = default_collate([sample[:3] for sample in samples])
    one_color = tuple(sample.image_index for sample in samples if sample.has_one_color)
    return LabeledBatch(image, label, image_index, one_color)


def collate_masked(samples: list[MaskedImage]) -> MaskedBatch:
    """Stacks samples into a MaskedBatch, in a worker directly in shared memory."""
    return MaskedBatch(*default_collate([tuple(sample) for sample in samples]))


def set_up_worker(worker: int = 0) -> None:
    """Prepares a process that was started by `worker_context`.

    torch uses one thread, libraries do not warn, and the process ends with the one that uses it.

    Args:
      worker: its number, which DataLoader passes; unused.
    """
    del worker
    torch.set_num_threads(1)
    # Libraries warn of what they make of damaged images; images that they cannot read are reported.
    warnings.simplefilter("ignore")
    _exit_with_parent()


def _exit_with_parent() -> None:
    """Ends this worker when the process that uses it is killed, but not by SIGTERM.

    DataLoader's workers only watch the parent process, which here is the fork server and lives as
    long as its workers.
    """
    # DataLoader has set a handler of its own.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_context() -> BaseContext:
    """Returns the multiprocessing context that starts worker processes."""
    # A plain fork copies locks that threads of CUDA, NCCL and OpenMP may hold. The fork server
    # has no such threads and imports this module, torch and torchvision once for all workers.
    _shorten_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with signals.ignored():
        forkserver.ensure_running()
    return context


@atexit.register
def _kill_workers() -> None:
    """Kills workers that do not react; Python would send them SIGTERM and wait for ever."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _shorten_sockets() -> None:
    """Makes sure that worker processes can connect, whatever the length of $TMPDIR.

    They do so through sockets in a folder of their own, which `get_temp_dir` creates on its first
    call and removes at exit, and whose paths can have at most 107 characters.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
        return
    tempfile.tempdir = "/tmp"
    try:
        util.get_temp_dir()
    finally:
        tempfile.tempdir = folder
