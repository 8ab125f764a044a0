"""Times, memory and arithmetic of actions on a device, so taken that they can be compared."""

import ctypes
import gc
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from jigclu.system import progress

Action = Callable[[], object]
_Row = TypeVar("_Row")

_CALLS_AT_ONCE = 10
_MATRIX = {"cpu": 2048, "cuda": 8192}  # Side of the matrices of `matmul_rate`.


def row(number: int, rows: int, name: str) -> AbstractContextManager[progress.Work]:
    """Shows from its start that a row of a table, from 1, is being measured."""
    return progress.status(f"row {number} of {rows}: {name}", patience=0)


def each_row(rows: Mapping[str, _Row]) -> Iterator[tuple[str, _Row]]:
    """Yields names and values of rows, and shows which one is being measured."""
    for number, (name, value) in enumerate(rows.items(), 1):
        with row(number, len(rows), name):
            yield name, value


def synchronize(device: torch.device) -> None:
    """Waits for what is queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Seconds(NamedTuple):
    """What one call of an action took, over all repetitions."""

    median: float
    least: float
    most: float


def interleaved(
    actions: Mapping[str, Action],
    repetitions: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Seconds]:
    """Times each action; returns the seconds of a call, by name.

    The actions take turns, so that a machine that slows down slows all of them alike.
    A first round, in which caches fill, does not count. A GPU is given several calls at
    once, for a run does not wait for it after each either.

    Args:
      actions: by name.
      repetitions: >= 1.
      device: on which they compute.
      clock: seconds; `time.process_time` for those of the processor.
    """
    calls = _CALLS_AT_ONCE if device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in actions}
    turns = itertools.product(range(1, repetitions + 2), enumerate(actions.items(), 1))
    with progress.status("timing") as work:
        for round_number, (number, (name, action)) in turns:
            work.what = (
                f"round {round_number} of {repetitions + 1}, row {number} of {len(actions)}: {name}"
            )
            synchronize(device)
            began = clock()
            for _ in range(calls):
                action()
            synchronize(device)
            times[name].append((clock() - began) / calls)
    return {
        name: Seconds(statistics.median(taken[1:]), min(taken[1:]), max(taken[1:]))
        for name, taken in times.items()
    }


def peak_memory(action: Action, device: torch.device) -> int | None:
    """Returns the most bytes that an action needs beyond those held before it.

    On CUDA of the device's allocator, on Linux of the process; None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    # What was freed before must not be taken for what is held; 5 resets the high-water mark.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = _status_bytes("VmRSS")
    action()
    return max(_status_bytes("VmHWM") - before, 0)


def first_calls(actions: Mapping[str, Action], device: torch.device) -> dict[str, int | None]:
    """Calls each action once, which compiles it, and once more; returns the memory of that.

    Returns:
      `peak_memory`, by name.
    """
    memory = {}
    for name, action in each_row(actions):
        action()
        memory[name] = peak_memory(action, device)
    return memory


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be taken on a device, about."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()) if meminfo.exists() else None
    return int(found[1]) * 1024 if found else 4 * 1024**3


def matmul_rate(device: torch.device, precision: torch.dtype, repetitions: int) -> float:
    """Returns the floating-point operations a second of a large square matrix product.

    What a device can reach in practice, at its best: the arithmetic of encoders is mostly such
    products. In TF32 where convolutions of float32 are.
    """
    side = _MATRIX[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        timed = interleaved({"product": lambda: left @ right}, repetitions, device)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * side**3 / timed["product"].least
