"""The device of this process, and the processes that torchrun started."""

import functools
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from jigclu.system import compile_cache, progress
from jigclu.system.cores import launch_number
from jigclu.system.errors import UserError
from jigclu.system.files import unwritable

DEVICES = ("auto", "cpu", "cuda")
_LOOPBACK = ("localhost", "127.0.0.1")


def local_device(name: str) -> torch.device:
    """Returns the device of this process; under torchrun, the GPU of its local rank.

    Args:
      name: "cpu", "cuda", or "auto" (CUDA if there is a GPU).

    Raises:
      UserError: an unknown name, no usable GPU, or more processes than GPUs.
    """
    if name not in DEVICES:
        known = ", ".join(map(repr, DEVICES))
        raise UserError(f"compute.device is {name!r}; it must be one of {known}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError(
            "compute.device is 'cuda', but torch sees no GPU: check nvidia-smi, or bind "
            "compute.device = 'auto'"
        )
    local_rank = launch_number("LOCAL_RANK", 0)
    if local_rank >= count:
        raise UserError(
            f"local rank {local_rank} has no GPU, because torch sees only {count}: "
            f"start torchrun with --nproc-per-node={count}"
        )
    return torch.device("cuda", local_rank)


def launched_processes() -> int:
    """Returns the number of processes that torchrun started on all machines, 1 without it.

    Raises:
      UserError: WORLD_SIZE names several processes, but not all of torchrun's variables are set.
    """
    processes = launch_number("WORLD_SIZE", 1)
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if processes > 1 and absent:
        raise UserError(
            f"WORLD_SIZE is {processes}, but the environment lacks {', '.join(absent)}: "
            "start with torchrun, or unset WORLD_SIZE"
        )
    return processes


def launched_rank() -> int:
    """Returns the rank of this process among those that torchrun started, 0 without it."""
    return launch_number("RANK", 0)


def compiler_problem() -> str | None:
    """Returns why torch.compile cannot work (no C++ compiler, no writable cache), or None."""
    names = [os.environ.get("CXX", "g++"), "g++", "clang++", "c++"]
    if not any(map(shutil.which, names)):
        return "there is no C++ compiler (g++, clang++ or $CXX): install one"
    folder = os.environ.get(compile_cache.VARIABLE)
    problem = None if folder is None else unwritable(Path(folder))
    if problem is not None:
        return (
            f"the folder {folder} for compiled code is not writable ({problem}): "
            f"set ${compile_cache.VARIABLE} to another folder"
        )
    return None


def check_compiler() -> None:
    """Raises UserError unless torch.compile can work here."""
    problem = compiler_problem()
    if problem is not None:
        raise UserError(
            f"compute.compile is True, but {problem}, or bind compute.compile = 'auto' or False"
        )


def _rendezvous() -> tuple[dist.Store, int, int]:
    """Returns torchrun's store, the rank of this process, and the number of processes.

    If all processes are on this machine, none of their sockets can be reached from another one,
    provided that torchrun leaves the store to rank 0, as in launch/one_machine.sh.
    """
    address, port = os.environ["MASTER_ADDR"], launch_number("MASTER_PORT", 0)
    if address not in _LOOPBACK:
        return next(dist.rendezvous("env://"))
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, loopback)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        return next(dist.rendezvous("env://"))
    rank, processes = launched_rank(), launched_processes()
    # A server that torch binds itself listens on all interfaces.
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    store = dist.TCPStore(address, port, processes, is_master=rank == 0, master_listen_fd=listener)
    return store, rank, processes


# Numbers the process groups of this process, alike on all ranks.
_groups = itertools.count()


@functools.cache
def _store() -> tuple[dist.Store, int, int]:
    """Returns the store through which processes meet, the rank of this one, and their number."""
    return _rendezvous()


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started for the duration of a block.

    All of them leave the block together, so files that one has written in it exist for the
    others after it. A single process has no group.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched_processes() == 1:
        yield
        return
    # Each group needs its own keys: those of an earlier group hold outdated addresses.
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
