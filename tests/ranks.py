"""Runs a function on several ranks of this machine, for the tests that need them.

    def mean_rank(values: Tensor) -> Tensor:  # At the top of a test module.
        ...

    results = run_on_ranks(mean_rank, 2, values)

Each rank is a fresh process, which imports the test module by its name (or, where
the module itself was started, as the main one): hence a function at its top level.
"""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def run_on_ranks(
    function: Callable[..., Result], world_size: int, *arguments: Any, backend: str = "gloo"
) -> list[Result]:
    """Calls function(*arguments) on every rank of a process group and waits for all.

    Args:
      function: at the top level of its module; asks `torch.distributed` for its rank.
      world_size: how many ranks, one process and one thread each.
      *arguments: the same on all ranks; anything that pickles.
      backend: "gloo", or "nccl" with the GPU of its number for each rank.

    Returns:
      What each rank returned, in the order of ranks: tensors, numbers, strings, None, or
      lists, tuples and dicts of those.

    Raises:
      torch.multiprocessing.ProcessRaisedException: with the traceback of the rank that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A clean server that has imported what tests need forks the ranks: spawned ones would
        # each spend seconds on that, and forks of this process would share its threads' locks.
        multiprocessing.set_forkserver_preload(["jigclu.config", "tests.small_tasks"])
        torch.multiprocessing.start_processes(
            _run_rank,
            (world_size, Path(folder), function, arguments, backend),
            nprocs=world_size,
            start_method="forkserver",
        )
        paths = [_result_path(Path(folder), rank) for rank in range(world_size)]
        return [torch.load(path, weights_only=True) for path in paths]


def _run_rank(
    rank: int,
    world_size: int,
    folder: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    backend: str,
) -> None:
    # Threads of several ranks would only spin against each other.
    torch.set_num_threads(1)
    # The first interface is the loopback: nothing leaves the machine or asks for its name.
    os.environ["GLOO_SOCKET_IFNAME"] = socket.if_nameindex()[0][1]
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=2),
    )
    torch.save(function(*arguments), _result_path(folder, rank))
    # Whoever leaves first closes connections that others may still read from.
    dist.barrier()
    dist.destroy_process_group()


def _result_path(folder: Path, rank: int) -> Path:
    return folder / f"result_of_rank_{rank}"
