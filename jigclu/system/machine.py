"""Settings that depend on the machine: a value for every 'auto', with the reason for it."""

import functools
import math
import os
import time
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch.nn import functional

from jigclu.system import allocator
from jigclu.system.cores import available_cores, local_ranks
from jigclu.system.device import compiler_problem
from jigclu.system.errors import check

_Value = TypeVar("_Value")
Auto = Literal["auto"]

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# On a CPU, training on an image takes at least eight times as long as reading it.
_CORES_PER_WORKER = 8
# More processes only compete for memory and the disk.
_MOST_WORKERS = 16
# Compilation takes a minute or two, which fewer steps do not earn back.
_LEAST_COMPILED_STEPS = 300
# Slowdowns above this factor are worth a warning; smaller ones may be measurement noise.
_SLOW = 1.5


@dataclass(frozen=True)
class Choice(Generic[_Value]):
    """The value of a setting, and the reason for it."""

    value: _Value
    reason: str


class Machine(NamedTuple):
    """The machine-dependent settings of one process.

    precision: "float32", or autocast to "bfloat16" or "float16".
    compile: whether torch.compile is used.
    channels_last: whether images and weights are in channels-last memory format.
    workers: processes that read images.
    threads: CPU threads of this process for tensor operations.
    keep_freed_memory: whether freed memory is reused instead of returned to the system.
    pin_memory: whether batches are read into page-locked memory.
    cudnn_benchmark: whether cuDNN times its algorithms in the first step.
    tf32: whether float32 convolutions on a GPU may round their inputs to TF32.
    """

    precision: Choice[str]
    compile: Choice[bool]
    channels_last: Choice[bool]
    workers: Choice[int]
    threads: Choice[int]
    keep_freed_memory: Choice[bool]
    pin_memory: Choice[bool]
    cudnn_benchmark: Choice[bool]
    tf32: Choice[bool]

    def summary(self) -> str:
        """Returns one line per setting, with its name, value and reason."""
        return "machine:\n" + "\n".join(
            f"  {name}: {choice.value} ({choice.reason})" for name, choice in self._asdict().items()
        )

    def to_checkpoint(self) -> dict[str, list[Any]]:
        """Returns [value, reason] for the name of each setting, as plain values."""
        return {name: [choice.value, choice.reason] for name, choice in self._asdict().items()}

    def apply(self) -> None:
        """Applies the process-wide settings: threads, memory, and convolutions."""
        torch.set_num_threads(self.threads.value)
        if self.keep_freed_memory.value:
            allocator.keep_freed_memory()
        torch.backends.cudnn.benchmark = self.cudnn_benchmark.value
        torch.backends.cudnn.allow_tf32 = self.tf32.value


def choose_machine(
    device: torch.device,
    *,
    precision: Choice[str],
    use_compile: bool | Auto,
    channels_last: bool | Auto,
    workers: int | Auto,
    steps: int,
    compilable: bool = True,
) -> Machine:
    """Chooses a value for every setting that depends on the machine.

    Args:
      device: training device.
      precision: result of `choose_precision`; the same on every rank.
      use_compile, channels_last, workers: values bound by the user.
      steps: length of the run.
      compilable: whether the run has anything to compile.
    """
    return Machine(
        precision=precision,
        compile=choose_compile(use_compile, device, steps, compilable),
        channels_last=_choose_channels_last(channels_last),
        workers=choose_workers(workers, device),
        threads=choose_threads(),
        keep_freed_memory=_choose_keep_freed_memory(device),
        pin_memory=_on_gpu(device, "copies to the GPU overlap with computation"),
        cudnn_benchmark=_on_gpu(device, "every step has the same shapes"),
        tf32=_on_gpu(device, "torch's default; matrix products stay in float32"),
    )


def check_precision(precision: str) -> None:
    """Raises UserError unless it is 'auto' or one of `PRECISIONS`."""
    known = ("auto", *PRECISIONS)
    check(precision in known, "precision", precision, f"one of {', '.join(map(repr, known))}")


def choose_precision(bound: str, device: torch.device, started: str | None) -> Choice[str]:
    """Chooses the fastest precision that is safe for training.

    Args:
      bound: "auto" or one of `PRECISIONS`.
      device: training device.
      started: precision of the resumed run; None for a new run.
    """
    if bound != "auto":
        changed = f"; this run started in {started}" if started not in (None, bound) else ""
        return Choice(bound, f"bound{changed}")
    if started is not None:
        return Choice(started, "precision of the resumed run")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bfloat16", f"{name} has native bfloat16")
        return Choice("float16", f"{name} has no native bfloat16; losses are scaled")
    if not _cpu_supports_bfloat16():
        return Choice("float32", "this CPU has neither avx512_bf16 nor AMX")
    slowdown = precision_slowdown("bfloat16", device)
    if slowdown >= 1:
        return Choice(
            "float32", f"bfloat16 takes {slowdown:.1f} times as long as float32 on this CPU"
        )
    return Choice("bfloat16", f"convolutions are {1 / slowdown:.1f} times as fast as in float32")


def precision_warning(choice: Choice[str], device: torch.device) -> str | None:
    """Returns a warning if float32 would be much faster on this device."""
    if choice.value == "float32":
        return None
    slowdown = precision_slowdown(choice.value, device)
    if slowdown < _SLOW:
        return None
    return (
        f"compute.precision is {choice.value!r}, in which convolutions take {slowdown:.1f} times "
        "as long as in float32 on this machine: bind compute.precision = 'float32', or 'auto' for "
        "a new run"
    )


def _cpu_supports_bfloat16() -> bool:
    """Asks oneDNN, which runs convolutions on CPUs."""
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@functools.cache
def precision_slowdown(precision: str, device: torch.device) -> float:
    """Returns how many times slower a convolution is than in float32; takes milliseconds."""
    slow, fast = (_convolution_seconds(PRECISIONS[name], device) for name in (precision, "float32"))
    return slow / fast


def _convolution_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the shortest time of several runs of a 3x3 convolution, in seconds."""
    images = torch.ones(4, 64, 14, 14, dtype=dtype, device=device)
    images = images.to(memory_format=torch.channels_last)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype, device=device)
    seconds = math.inf
    with torch.no_grad():
        for _ in range(10):
            began = time.perf_counter()
            functional.conv2d(images, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = min(seconds, time.perf_counter() - began)
    return seconds


def choose_compile(
    bound: bool | Auto, device: torch.device, steps: int, compilable: bool = True
) -> Choice[bool]:
    """Chooses whether to use torch.compile; for the arguments see `choose_machine`."""
    if not compilable:
        return Choice(False, "nothing to compile")
    if bound != "auto":
        return Choice(bound, "bound")
    if device.type == "cpu":
        return Choice(False, "eager steps are as fast on a CPU")
    problem = compiler_problem()
    if problem is not None:
        return Choice(False, problem)
    if steps < _LEAST_COMPILED_STEPS:
        return Choice(False, f"{steps} steps are too few to earn back the compilation")
    return Choice(True, f"{steps:,} steps earn back the compilation")


def _choose_channels_last(bound: bool | Auto) -> Choice[bool]:
    if bound != "auto":
        return Choice(bound, "bound")
    return Choice(True, "convolutions are as fast or faster")


def check_workers(workers: int | Auto, least: int = 0) -> None:
    """Raises UserError unless it is 'auto' or at least `least`."""
    in_range = workers == "auto" or workers >= least
    check(in_range, "workers", workers, f"{least} or more, or 'auto'")


def choose_workers(bound: int | Auto, device: torch.device) -> Choice[int]:
    """Chooses the number of worker processes that read images for this one."""
    if bound != "auto":
        return Choice(bound, "bound")
    cores = available_cores() // local_ranks()
    if device.type == "cuda":
        workers = min(max(1, cores - 1), _MOST_WORKERS)
        return Choice(workers, f"{cores} cores per process, one of them for the process itself")
    workers = min(max(1, cores // _CORES_PER_WORKER), _MOST_WORKERS)
    return Choice(workers, f"{cores} cores per process, mostly needed for training")


def choose_pack_workers(bound: int | Auto) -> Choice[int]:
    """Chooses the number of processes that write shards while nothing else runs."""
    if bound != "auto":
        return Choice(bound, "bound")
    cores = available_cores()
    return Choice(cores, f"{cores} cores")


def choose_threads() -> Choice[int]:
    """Chooses the number of CPU threads of this process."""
    ranks, bound = local_ranks(), os.environ.get("OMP_NUM_THREADS")
    # torchrun sets 1 for several processes, whatever the number of cores.
    if bound is not None and not (ranks > 1 and bound == "1"):
        return Choice(torch.get_num_threads(), "OMP_NUM_THREADS is set")
    cores = available_cores()
    return Choice(max(1, cores // ranks), f"{cores} cores, {ranks} processes on this machine")


def _choose_keep_freed_memory(device: torch.device) -> Choice[bool]:
    if device.type == "cpu":
        return Choice(True, "every step allocates the same tensors")
    return Choice(False, "tensors are on a GPU")


def _on_gpu(device: torch.device, reason: str) -> Choice[bool]:
    return Choice(True, reason) if device.type == "cuda" else Choice(False, "no GPU")
