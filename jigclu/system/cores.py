"""Processor cores that this process may use, and processes that share them."""

import math
import os
from pathlib import Path

from jigclu.system.errors import UserError


def launch_number(variable: str, default: int) -> int:
    """Returns a number that torchrun sets in the environment, or a default without it.

    Raises:
      UserError: the variable is set to something else.
    """
    value = os.environ.get(variable)
    if value is None:
        return default
    if not value.isdecimal():
        raise UserError(
            f"{variable} is {value!r}; it must be a number, as torchrun sets it: start with "
            f"torchrun, or unset {variable}"
        )
    return int(value)


def local_ranks() -> int:
    """Returns the number of processes that torchrun started on this machine, 1 without it."""
    return launch_number("LOCAL_WORLD_SIZE", 1)


def available_cores() -> int:
    """Returns the number of cores that CPU affinity and cgroup limits leave to this process."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, math.floor(min(cores, cgroup_cores())))


def cgroup_cores(
    mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Returns the CPU time that cgroups grant, in cores; infinity if there is no limit.

    Args:
      mount: mount point of the cgroup file system.
      own: file that lists the cgroups of this process, "number:controllers:/path" per line.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            # Version 1 mounts every controller in its own folder.
            base = mount / "cpu" if controllers else mount
            # Every group on the path may set a limit; a container may see only the root.
            parts = Path(group.lstrip("/")).parts
            folders = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
            limits.extend(map(_limit, folders))
    return min(limits)


def _limit(folder: Path) -> float:
    """Returns the cores that one cgroup grants, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        unlimited = quota == "max" or int(quota) <= 0
        return math.inf if unlimited else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
