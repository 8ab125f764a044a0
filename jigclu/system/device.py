"""The device of this process, and its place among the processes of torchrun."""

import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from jigclu.system import compile_cache, progress
from jigclu.system.errors import UserError

DEVICES = ("auto", "cpu", "cuda")


def local_device(name: str) -> torch.device:
    """Returns the device of this process: under torchrun the GPU of its local rank.

    Args:
      name: "cpu", "cuda", or "auto": CUDA where there is a GPU.

    Raises:
      UserError: an unknown name, no usable GPU, or more processes than GPUs.
    """
    if name not in DEVICES:
        raise UserError(f"device is {name!r}; it must be one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError("device is 'cuda', but torch sees no GPU: check nvidia-smi, or take 'auto'")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} of this machine has no GPU, torch sees {count}: "
            f"give torchrun --nproc-per-node={count}"
        )
    return torch.device("cuda", local_rank)


def launched_processes() -> int:
    """Returns how many processes torchrun started on all machines, 1 without it.

    Raises:
      UserError: the environment names several, but not how they meet.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if processes > 1 and absent:
        raise UserError(
            f"WORLD_SIZE is {processes}, but {', '.join(absent)} are not set: "
            "start by torchrun, or unset WORLD_SIZE"
        )
    return processes


def launched_rank() -> int:
    """Returns the number of this process among those that torchrun started, 0 without it."""
    return int(os.environ.get("RANK", 0))


def compiler_problem() -> str | None:
    """Returns why torch.compile cannot work here: no C++ compiler, or no cache; else None."""
    names = [os.environ.get("CXX", "g++"), "g++", "clang++", "c++"]
    if not any(map(shutil.which, names)):
        return "there is no C++ compiler (g++, clang++ or $CXX): install one"
    folder = os.environ.get(compile_cache.VARIABLE)
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return (
            f"{folder}, where compiled code is kept, cannot be written ({error.strerror}): "
            f"set ${compile_cache.VARIABLE} to another folder"
        )
    return None


def check_compiler() -> None:
    """Raises UserError unless torch.compile can work here."""
    problem = compiler_problem()
    if problem is not None:
        raise UserError(f"compile is True, but {problem}, or bind compile = 'auto' or False")


# Of every process group a number of its own, the same on all ranks.
_groups = itertools.count()


@functools.cache
def _store() -> tuple[dist.Store, int, int]:
    """Returns where the processes of torchrun meet, the rank of this one, and their number."""
    return next(dist.rendezvous("env://"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started for the length of a block; alone does nothing.

    All of them leave it together: what one wrote before, the others find after it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched_processes() == 1:
        yield
        return
    # Under names of an earlier group its processes would look for each other where they were.
    name = f"jigclu/{next(_groups)}"
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    with progress.status("waiting for the other processes"):
        store, rank, world_size = _store()
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(name, store),
            rank=rank,
            world_size=world_size,
            device_id=bound,
        )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
