"""What a run ran on: versions, device, commit and command."""

import importlib.metadata
import json
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from jigclu.system.cores import available_cores
from jigclu.system.files import write_file

_PACKAGES = ("jigclu", "torch", "torchvision", "numpy", "pillow", "gin-config", "tensorboard")
_ROOT = Path(__file__).parents[2]


def add_environment(path: Path, processes: int) -> None:
    """Adds the environment of this process to a JSON file with a list, one entry per start.

    Args:
      path: of the file; one that is not such a list is replaced.
      processes: of the run, on all machines.
    """
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    starts = starts if isinstance(starts, list) else []
    starts.append(describe(processes))
    write_file(path, json.dumps(starts, indent=2).encode())


def describe(processes: int) -> dict[str, Any]:
    """Returns versions, devices, the commit of the checkout, and the command, as plain values."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "cuda": torch.version.cuda,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "gpus": gpus,
        "processes": processes,
        "processor": processor(),
        "cores": available_cores(),
    }


def processor() -> str:
    """Returns the model of the processor, such as "AMD EPYC 7763 64-Core Processor"."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _commit() -> str | None:
    """Returns the commit of the checkout this code is in, with "+" if files differ, or None."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + "+" if _git("status", "--porcelain") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=10
    ).stdout.strip()
