"""Time from the start of a process to the end of its first step."""

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.instruments import Instruments, synchronize
from jigclu.tasks.benchmark.noise_steps import jigsaw_step
from jigclu.tasks.benchmark.timing import show_rows
from jigclu.tasks.benchmark.workload import with_compilation
from jigclu.tasks.pretrain import PretrainTask

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


class StartTimes(NamedTuple):
    """Seconds to the end of the first step: eager, and compiled with an empty and a warm cache."""

    eager: float
    empty_cache: float
    warm_cache: float


def measure_start(task: PretrainTask, instruments: Instruments) -> StartTimes:
    """Starts three processes, one after another, and waits for the first step of each on noise.

    Args:
      task: whose step is taken.
      instruments: of the device.

    Raises:
      UserError: a process ended without a step.
    """
    starts = {"eager": False, "compiled, empty cache": True, "compiled, warm cache": True}
    with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
        return StartTimes(
            *(
                _seconds_to_first_step(with_compilation(task, compiled), instruments)
                for _, compiled in show_rows(starts)
            )
        )


def _seconds_to_first_step(task: PretrainTask, instruments: Instruments) -> float:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_take_first_step, args=(task, instruments.device, sender))
    began = instruments.clock()
    process.start()
    sender.close()
    try:
        receiver.recv()
    except EOFError as error:
        raise UserError("a process ended before its first step; see what it printed") from error
    seconds = instruments.clock() - began
    process.join()
    return seconds


def _take_first_step(task: PretrainTask, device: torch.device, sender: Connection) -> None:
    """Runs in the new process; sends a message when the device has finished the step."""
    jigsaw_step(task, device)()
    synchronize(device)
    sender.send(None)


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Makes new processes keep what they compile in a folder."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before
