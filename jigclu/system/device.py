"""The device of this process, and the processes that torchrun started."""

import contextlib
import functools
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from jigclu.system import compile_cache, progress, signals
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


def _is_store_in_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


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
    if _is_store_in_torchrun():
        return next(dist.rendezvous("env://"))
    rank, processes = launched_rank(), launched_processes()
    # A server that torch binds itself listens on all interfaces.
    listener = socket.create_server((address, port)).detach() if rank == 0 else None
    store = dist.TCPStore(address, port, processes, is_master=rank == 0, master_listen_fd=listener)
    return store, rank, processes


# Numbers the process groups of this process, alike on all ranks.
_groups = itertools.count()
# Seconds for which a rank that has lost another one waits for the reports of the others.
_REPORT_SECONDS = 5.0


@functools.cache
def _store() -> tuple[dist.Store, int, int]:
    """Returns the store through which processes meet, the rank of this one, and their number."""
    store, rank, world_size = _rendezvous()
    # The store outlives processes that torchrun restarts, and holds the addresses of dead ones.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"jigclu/{attempt}", store), rank, world_size


@contextmanager
def process_group(device: torch.device, timeout: float = 900.0) -> Iterator[None]:
    """Joins the processes that torchrun started for the duration of a block.

    All of them leave the block together, so files that one has written in it exist for the
    others after it. A single process has no group.

    Args:
      device: of this process.
      timeout: seconds for which ranks wait for each other; the default is for the choice of
        settings.

    Raises:
      UserError: another rank failed or does not respond.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched_processes() == 1:
        yield
        return
    # Each group needs its own keys: those of an earlier group hold outdated addresses.
    name = str(next(_groups))
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    with progress.status("waiting for the other processes"):
        try:
            store, rank, world_size = _store()
            store = dist.PrefixStore(name, store)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout),
                device_id=bound,
            )
        except dist.DistError as error:
            raise UserError(
                f"the {launched_processes()} processes did not meet within "
                f"compute.rank_timeout = {timeout:g} seconds ({_first_line(error)}): check whether "
                "all of them have started, and reach each other"
            ) from error
    try:
        with _explain_lost_ranks(store, rank, world_size):
            yield
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def _explain_lost_ranks(store: dist.Store, rank: int, world_size: int) -> Iterator[None]:
    """Replaces errors of communication by one that names the rank that caused them.

    Each rank that leaves the block early reports why to the store; one that does not was killed
    or stopped.
    """
    try:
        yield
    except BaseException as error:
        is_lost = isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and "/gloo/" in str(error)
        )
        own = "lost" if is_lost else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(RuntimeError):
            store.set(f"end/{rank}", own)
        if not is_lost:
            raise
        signals.check()
        reports = _reports(store, world_size)
        if "stopped" in reports.values():
            raise signals.Stopped from error
        raise UserError(_describe_lost(reports, world_size, _first_line(error))) from error


def _reports(store: dist.Store, world_size: int) -> dict[int, str]:
    """Returns why ranks left, by rank; waits for ranks that have not reported yet."""
    keys = {number: f"end/{number}" for number in range(world_size)}
    deadline = time.monotonic() + _REPORT_SECONDS
    try:
        while not store.check(list(keys.values())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return {
            number: store.get(key).decode() for number, key in keys.items() if store.check([key])
        }
    except RuntimeError:
        # The store has ended with torchrun or, as under launch/one_machine.sh, with rank 0.
        return {} if _is_store_in_torchrun() else dict.fromkeys(range(1, world_size), "lost")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _describe_lost(reports: Mapping[int, str], world_size: int, error: str) -> str:
    failed = [str(number) for number, report in reports.items() if report == "failed"]
    if failed:
        return f"rank {', '.join(failed)} failed; its own message says why"
    silent = [str(number) for number in range(world_size) if number not in reports]
    if reports and silent:
        return (
            f"rank {', '.join(silent)} does not respond: it was killed, perhaps for lack of "
            "memory, or stopped, or its machine is down; run the same command again, or bind a "
            "larger compute.rank_timeout if it was only slow"
        )
    return f"ranks lost their connections ({error}): check the network and torchrun"
