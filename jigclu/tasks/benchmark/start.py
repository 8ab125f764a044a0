"""How long a process takes to its first step: eager, with an empty cache, with a warm one."""

import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch

from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.stepping import jigsaw_step
from jigclu.tasks.benchmark.tables import Table
from jigclu.tasks.benchmark.timing import each_row, synchronize
from jigclu.tasks.pretrain import PretrainTask

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def measure_start(task: PretrainTask, device: torch.device) -> Table:
    """Starts a process for each, one after another, and waits for its first step on noise.

    Args:
      task: whose step is taken.
      device: on which to compute.

    Raises:
      UserError: a process ended without a step.
    """
    eager, compiled = (dataclasses.replace(task, compile=value) for value in (False, True))
    with tempfile.TemporaryDirectory() as folder, _cache_in(folder):
        starts = {
            "eager": eager,
            "compiled, empty cache": compiled,
            "compiled, warm cache": compiled,
        }
        seconds = {name: _to_first_step(task, device) for name, task in each_row(starts)}
    cold = seconds["compiled, empty cache"]
    return Table(
        title="Time to the first step",
        columns=("start", "s", "against an empty cache"),
        rows=[(name, taken, taken / cold) for name, taken in seconds.items()],
        note="From the start of the process, imports included, to the end of its first step, "
        "on noise: nothing is read.",
        panels=(("s",),),
    )


def _to_first_step(task: PretrainTask, device: torch.device) -> float:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_take_first_step, args=(task, device, sender))
    began = time.perf_counter()
    process.start()
    sender.close()
    try:
        receiver.recv()
    except EOFError as error:
        raise UserError("a process ended before its first step; see what it printed") from error
    taken = time.perf_counter() - began
    process.join()
    return taken


def _take_first_step(task: PretrainTask, device: torch.device, sender: Connection) -> None:
    jigsaw_step(task, device)()
    synchronize(device)
    sender.send(None)


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Lets processes that are started keep what they compile in a folder."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before
