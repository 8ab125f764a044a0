"""Memory of the device of this process."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from jigclu.system.cores import local_ranks
from jigclu.system.errors import UserError

# Limits of a container, in bytes, of cgroup versions 2 and 1; "max" for none.
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def device_memory(device: torch.device) -> int:
    """Returns the memory of a GPU, or this process's share of the machine's memory, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *container_limits()]) // local_ranks()


def container_limits(mount: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Returns the memory limits of the container that this process runs in, in bytes.

    Args:
      mount: mount point of the cgroup file system.
    """
    texts = [(mount / name).read_text().strip() for name in _LIMITS if (mount / name).is_file()]
    return [int(text) for text in texts if text.isdecimal()]


@contextmanager
def advise(advice: str) -> Iterator[None]:
    """Turns a lack of device memory into a user error that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ", 1)[0]
        raise UserError(f"{reason}: {advice}") from error


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process has held so far: on its GPU, or altogether."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
