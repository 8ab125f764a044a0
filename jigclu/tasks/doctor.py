"""Examines a machine, the data and the settings of a training task before a long run.

Each check returns findings: what was seen, whether it is a problem, and what to do about it.
"""

import dataclasses
import math
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from jigclu.data.decode import UnreadableImageError
from jigclu.data.loader import check_loader
from jigclu.data.sources import Source
from jigclu.system import collectives, machine, memory, progress
from jigclu.system.cores import available_cores, local_ranks
from jigclu.system.device import compiler_problem
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.bare_run import BareRun
from jigclu.tasks.benchmark.instruments import device_instruments, synchronize
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import check_room
from jigclu.training.process import Process
from jigclu.training.settings import with_settings
from jigclu.training.task import TrainingTask

_SHOWN = 5  # Unreadable images that the text of a finding names.
_STEPS = 10  # Measured steps.
_WARM_UP = 2  # Steps before them, besides those whose batches are read meanwhile.
_REDUCTIONS = 10  # Measured sums over ranks.
_WAIT = 0.1  # Share of the time that steps may wait for their batches.
_FILES_PER_WORKER = 64  # Pipes, shared memory and images that a worker process keeps open.
_BASE_FILES = 128
_SHARED_MEMORY = Path("/dev/shm")

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """Result of a check.

    name: of what was checked.
    level: whether it is in order, could be better, or would stop or spoil the run.
    text: what was seen.
    remedy: what to do about it; empty if there is nothing to do.
    details: all items that the text sums up, such as unreadable images.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()


def examine(task: TrainingTask, workdir: Path) -> Iterator[Finding]:
    """Yields the findings of a task on the processes that run it; every rank must call it.

    Nothing is written but files that are removed again.

    Args:
      task: which has passed `check`.
      workdir: of the run to come.
    """
    with task.process(workdir, "") as process:
        yield from _check_devices(process)
        yield _check_compiler(process)
        yield from _check_limits(task, process)
        if collectives.world_size() > 1:
            yield _time_all_reduce(task, process.device)
        for name, source in find_sources(task).items():
            yield check_images(name, source, task.loading.timeout, _tolerated(task, name))
        if isinstance(task, PretrainTask):
            yield from _check_steps(task, process)
        else:
            yield Finding("steps", "ok", f"are measured for pre-training only, not {task.title}")


# ---- The machine -----------------------------------------------------------------------


def _check_devices(process: Process) -> Iterator[Finding]:
    device, chosen = process.device, process.machine
    name = "CPU"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    size = memory.device_memory(device) / 1e9
    ranks = collectives.world_size()
    yield Finding("devices", "ok", f"{ranks} x {name}, {size:,.1f} GB of memory each")
    cores = available_cores()
    yield Finding("cores", "ok", f"{cores} cores for {local_ranks()} processes on this machine")
    factors = {
        name: machine.precision_slowdown(name, device)
        for name in machine.PRECISIONS
        if name != "float32"
    }
    text = f"{chosen.precision.value} ({chosen.precision.reason}); time of a convolution relative "
    text += "to float32: " + ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())
    warning = machine.precision_warning(chosen.precision, device)
    if warning is None:
        yield Finding("precision", "ok", text)
    else:
        yield Finding("precision", "warning", text, warning)


def _check_compiler(process: Process) -> Finding:
    chosen = process.machine.compile
    if not chosen.value:
        return Finding("compile", "ok", f"torch.compile is not used ({chosen.reason})")
    problem = compiler_problem()
    if problem is None:
        try:
            torch.compile(_twice, fullgraph=True)(torch.ones(4, device=process.device))
        except Exception as error:  # Whatever a compiler may raise is its finding.
            problem = str(error).splitlines()[0]
    if problem is None:
        return Finding("compile", "ok", "torch.compile works")
    remedy = "bind compute.compile = False"
    return Finding("compile", "error", f"torch.compile fails: {problem}", remedy)


def _twice(values: torch.Tensor) -> torch.Tensor:
    return 2 * values


def _check_limits(task: TrainingTask, process: Process) -> Iterator[Finding]:
    """Checks the disk, and what worker processes need."""
    workdir, workers = process.workdir, process.machine.workers.value
    yield _check_disk(task, workdir)
    needed = _BASE_FILES + workers * _FILES_PER_WORKER
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{limit:,} may be open; {workers} worker processes need about {needed:,}"
    if limit == resource.RLIM_INFINITY or limit >= needed:
        yield Finding("open files", "ok", text)
    else:
        remedy = f"run `ulimit -n {min(needed, most) if most > 0 else needed}` first, or bind a "
        yield Finding("open files", "error", text, remedy + "smaller loading.workers")
    yield check_shared_memory(task, workers)


def _check_disk(task: TrainingTask, workdir: Path) -> Finding:
    folder = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if not isinstance(task, PretrainTask):
        return Finding("disk", "ok", f"{free:,.1f} GB are free at {folder}")
    size = state_bytes(task)
    created = [path for path in (workdir / "checkpoints", workdir) if not path.exists()]
    try:
        if collectives.rank() == 0:
            check_room(task, workdir, size, 0)
    except UserError as error:
        return Finding("disk", "error", str(error))
    finally:
        for path in created:
            with suppress(OSError):
                path.rmdir()
    text = f"{free:,.1f} GB are free at {folder}; a checkpoint has {size / 1e6:,.0f} MB"
    return Finding("disk", "ok", text)


def state_bytes(task: PretrainTask) -> int:
    """Returns the size of a checkpoint of a task, approximately."""
    with torch.device("meta"):
        network = task.method.network(task.new_encoder())
    sizes = [value.numel() * value.element_size() for value in network.parameters()]
    buffers = [value.numel() * value.element_size() for value in network.buffers()]
    return sum(sizes) * (1 + len(task.optimizer.moment_names)) + sum(buffers)


def check_shared_memory(task: TrainingTask, workers: int) -> Finding:
    """Checks the memory through which worker processes hand over their batches."""
    if not workers or not _SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", "is not needed")
    images = task.batch_size // collectives.world_size()
    side = getattr(task, "train_size", None)
    if isinstance(task, PretrainTask):
        sample = task.method.dataset(task.source, task.seed, task.batch_size)[(0, 0)]
        image_bytes = sample.crops.numel()
    else:
        image_bytes = 3 * (side or 224) ** 2
    # Each worker holds one more batch than it keeps ready.
    needed = workers * (task.loading.prefetch + 1) * images * image_bytes * local_ranks()
    free = shutil.disk_usage(_SHARED_MEMORY).free
    text = f"{free / 1e6:,.0f} MB are free in {_SHARED_MEMORY}; batches need {needed / 1e6:,.0f} MB"
    if free >= needed:
        return Finding("shared memory", "ok", text)
    remedy = "start the container with a larger --shm-size, or bind a smaller loading.workers"
    return Finding("shared memory", "error", text, remedy)


def _time_all_reduce(task: TrainingTask, device: torch.device) -> Finding:
    """Times the sum of gradients over ranks."""
    with torch.device("meta"):
        encoder = task.new_encoder()
    values = torch.zeros(sum(v.numel() for v in encoder.parameters()), device=device)
    collectives.sum_over_ranks(values)
    seconds = []
    for _ in range(_REDUCTIONS):
        synchronize(device)
        began = time.perf_counter()
        collectives.sum_over_ranks(values)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    size = values.numel() * values.element_size()
    text = (
        f"{size / 1e6:,.0f} MB of gradients over {collectives.world_size()} ranks take "
        f"{1e3 * statistics.median(seconds):,.1f} ms (median of {_REDUCTIONS})"
    )
    return Finding("all-reduce", "ok", text)


# ---- The data --------------------------------------------------------------------------


def find_sources(task: Any, prefix: str = "") -> dict[str, Source]:
    """Returns the images that a task and its evaluators read, by setting, each source once."""
    found: dict[str, Source] = {}
    for field in dataclasses.fields(task):
        value, path = getattr(task, field.name), f"{prefix}{field.name}"
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "fingerprint"):
                found.setdefault(path, part)
            elif dataclasses.is_dataclass(part):
                found |= find_sources(part, f"{path}.")
    seen: dict[str, str] = {}
    for path, source in found.items():
        seen.setdefault(source.fingerprint(deep=False), path)
    return {path: found[path] for path in seen.values()}


class _Problems(Dataset[tuple[int, str]]):
    """For each image its number, and why it is unreadable, or an empty text."""

    def __init__(self, source: Source, indices: range) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> tuple[int, str]:
        index = self._indices[number]
        try:
            self._source.read(index)
        except UnreadableImageError as error:
            return index, str(error)
        return index, ""


def _tolerated(task: TrainingTask, name: str) -> float:
    """Returns the share of unreadable images with which a task still runs."""
    if isinstance(task, PretrainTask) and (
        name == "source" or all(getattr(item, "skip_unreadable", False) for item in task.evaluators)
    ):
        return task.loading.most_unreadable
    return 0.0


def check_images(name: str, source: Source, timeout: float, tolerated: float) -> Finding:
    """Decodes every image of a source; the ranks share the work, and all get the finding.

    More unreadable images than the tolerated share, in [0, 1], are an error.
    """
    share = range(collectives.rank(), len(source), collectives.world_size())
    workers = max(1, available_cores() // local_ranks())
    problems: dict[int, str] = {}
    loader: DataLoader[Any] = check_loader(_Problems(source, share), workers, timeout)
    with progress.status(f"decoding the images of {name}", total=len(share)) as work:
        for samples in loader:
            problems |= {index: why for index, why in samples if why}
            work.done += len(samples)
    for part in collectives.gather_objects(problems):
        problems |= part
    if not problems:
        return Finding(name, "ok", f"all {len(source):,} images are readable")
    details = tuple(f"{source.name(index)} ({why})" for index, why in sorted(problems.items()))
    shown = "; ".join(details[:_SHOWN]) + ("; ..." if len(details) > _SHOWN else "")
    text = f"{len(details):,} of {len(source):,} images are unreadable: {shown}"
    level: Level = "error" if len(details) > tolerated * len(source) else "warning"
    return Finding(name, level, text, "copy them again, or remove them", details)


# ---- Steps -----------------------------------------------------------------------------


class StepTimes(NamedTuple):
    """Measured steps.

    seconds: of a step with its share of waiting.
    waiting: seconds of these that a step waited for its batch.
    reading: seconds that a batch takes if nothing but reading happens.
    """

    seconds: float
    waiting: float
    reading: float


def _check_steps(task: PretrainTask, process: Process) -> Iterator[Finding]:
    times = peak = None
    with suppress(torch.OutOfMemoryError):
        times, peak = measure_steps(task, process.device)
    if times is None:
        # Here, the error no longer keeps the tensors of the failed step alive.
        yield _find_micro_batch(task, process)
        return
    whole = memory.device_memory(process.device)
    used = "" if peak is None else f"; a step needs {peak / 1e9:,.2f} of {whole / 1e9:,.1f} GB"
    yield Finding("batch", "ok", f"{task.batch_size} images fit{used}")
    yield report_times(task, times)
    hours = task.total_steps * times.seconds / 3600
    yield Finding("duration", "ok", f"{task.total_steps:,} steps take about {hours:,.1f} hours")


def report_times(task: PretrainTask, times: StepTimes) -> Finding:
    """Returns who waits for whom: steps for batches, or the other way round."""
    images = task.batch_size
    share = times.waiting / times.seconds
    text = (
        f"{images / times.seconds:,.1f} images/s; reading alone {images / times.reading:,.1f}; "
        f"steps wait for batches {share:.0%} of the time"
    )
    if share <= _WAIT:
        return Finding("speed", "ok", text)
    remedy = (
        "reading is too slow: bind more loading.workers, write the images once with gin/pack.gin "
        "in a smaller size, or put them on a faster disk"
    )
    return Finding("speed", "warning", text, remedy)


def measure_steps(task: PretrainTask, device: torch.device) -> tuple[StepTimes, int | None]:
    """Takes steps as in training; returns their times, and the bytes that one of them needs."""
    chosen = task.choose_machine(None)
    warm_up = _WARM_UP + chosen.workers.value * task.loading.prefetch
    steps = warm_up + _STEPS + 1
    task = with_settings(
        task,
        compile=chosen.compile.value,
        epochs=math.ceil(steps / task.steps_per_epoch),
        warmup_epochs=0,
        stop_after_steps=steps,
        init_from=None,
        resume_from=None,
    )
    run = BareRun(task, device)
    peaks = []

    def first_step(take: Callable[[], object]) -> None:
        peaks.append(device_instruments(device).peak_memory(take))

    seconds, waiting = _time_steps(run, run.take_step, warm_up, device, first_step)
    reading, _ = _time_steps(BareRun(task, device), lambda _: None, warm_up, device, lambda _: None)
    return StepTimes(seconds, waiting, reading), peaks[0]


def _time_steps(
    run: BareRun,
    take_step: Callable[[Any], object],
    warm_up: int,
    device: torch.device,
    first_step: Callable[[Callable[[], object]], None],
) -> tuple[float, float]:
    """Returns the seconds per step, and those of them spent waiting for its batch."""
    waited, began = 0.0, 0.0
    for number, (batch, wait) in enumerate(progress.track(run.batches(), "measuring steps")):
        waited += wait if number > warm_up else 0.0
        if number == warm_up:
            synchronize(device)
            began = time.perf_counter()
        if number == 0:
            first_step(lambda batch=batch: take_step(batch))  # type: ignore[misc]
        elif number < warm_up + _STEPS:
            take_step(batch)
    synchronize(device)
    return (time.perf_counter() - began) / _STEPS, waited / _STEPS


def _find_micro_batch(task: PretrainTask, process: Process) -> Finding:
    """Looks for the largest micro-batch whose step fits into memory."""
    local = task.batch_size // collectives.world_size()
    sizes = [size for size in range(local - 1, 0, -1) if local % size == 0]
    for size in sizes:
        torch.cuda.empty_cache()
        with suppress(torch.OutOfMemoryError):
            measure_steps(with_settings(task, micro_batch_size=size), process.device)
            remedy = f"bind pretrain.micro_batch_size = {size}, which fits"
            return Finding("batch", "error", f"{local} images do not fit into memory", remedy)
    remedy = "use a smaller encoder or smaller patches"
    return Finding("batch", "error", "not even one image fits into memory", remedy)
