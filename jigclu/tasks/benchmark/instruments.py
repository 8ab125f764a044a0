"""The clock and the meters of a device. Measurements take them as an argument."""

import ctypes
import functools
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

Action = Callable[[], object]

_CALLS_AT_ONCE = {"cpu": 1, "cuda": 10}
_UNKNOWN_FREE_MEMORY = 4 * 1024**3  # Bytes, assumed on systems without /proc/meminfo.


class Instruments(NamedTuple):
    """The clock and the meters that a measurement reads; tests pass fakes.

    device: where actions compute.
    clock: seconds.
    synchronize: waits for all work queued on the device.
    peak_memory: bytes that an action needs beyond those held before it; None if unknown.
    free_memory: bytes that can still be allocated, approximately.
    calls_at_once: calls of an action between two readings of the clock. A GPU gets several,
      because training does not wait for it after each step either.
    """

    device: torch.device
    clock: Callable[[], float]
    synchronize: Callable[[], None]
    peak_memory: Callable[[Action], int | None]
    free_memory: Callable[[], int]
    calls_at_once: int


def device_instruments(
    device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Instruments:
    """Returns the real instruments of a device."""
    return Instruments(
        device=device,
        clock=clock,
        synchronize=functools.partial(synchronize, device),
        peak_memory=functools.partial(peak_memory, device=device),
        free_memory=functools.partial(free_memory, device),
        calls_at_once=_CALLS_AT_ONCE[device.type],
    )


def processor_instruments() -> Instruments:
    """Returns instruments whose clock counts the processor time of this process only."""
    return device_instruments(torch.device("cpu"), time.process_time)


def synchronize(device: torch.device) -> None:
    """Waits for all work queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(action: Action, device: torch.device) -> int | None:
    """Returns the most bytes that an action needs beyond those held before it.

    On CUDA, these are bytes of the device's allocator; on Linux, of the process; elsewhere
    the result is None.
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
    # Freed memory must not count as held; writing 5 resets the high-water mark.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    before = _process_bytes("VmRSS")
    action()
    return max(_process_bytes("VmHWM") - before, 0)


def _process_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be allocated on a device, approximately."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()) if meminfo.exists() else None
    return int(found[1]) * 1024 if found else _UNKNOWN_FREE_MEMORY
