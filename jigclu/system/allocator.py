"""Reuse of freed memory: every training step allocates and frees the same tensors."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = -1


def keep_freed_memory() -> None:
    """Lets this process reuse freed memory instead of returning it to the system.

    By default glibc maps every tensor above 32 MB anew, unmaps it when it is freed, and trims
    the heap, so a training step on a CPU spends its time on page faults. Afterwards the process
    keeps its peak memory. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
