"""Checks of the machine: devices, compiler, disk, open files, shared memory, communication."""

import resource
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from jigclu.system import collectives, machine, memory
from jigclu.system.cores import available_cores, local_ranks
from jigclu.system.device import compiler_problem
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.instruments import synchronize
from jigclu.tasks.doctor.finding import Finding, worst_of_ranks
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import check_room
from jigclu.training.process import Process
from jigclu.training.task import TrainingTask

_REDUCTIONS = 10  # Measured sums over ranks.
_FILES_PER_WORKER = 64  # Pipes, shared memory and images that a worker process keeps open.
_BASE_FILES = 128
_SHARED_MEMORY = Path("/dev/shm")


def check_machine(task: TrainingTask, process: Process) -> Iterator[Finding]:
    """Yields the findings about the machines of a run; every rank must call it."""
    yield from _check_devices(process)
    yield worst_of_ranks(_check_compiler(process))
    yield _check_disk(task, process.workdir)
    workers = process.machine.workers.value
    yield worst_of_ranks(_check_open_files(workers))
    yield worst_of_ranks(check_shared_memory(task, workers))
    if collectives.world_size() > 1:
        yield _time_all_reduce(task, process.device)


def _check_devices(process: Process) -> Iterator[Finding]:
    device, chosen = process.device, process.machine
    name = "CPU"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    size = memory.device_memory(device) / 1e9
    ranks = collectives.world_size()
    yield Finding("devices", "ok", f"{ranks} x {name}, {size:,.1f} GB of memory each")
    cores = available_cores()
    processes = f"{local_ranks()} process" + ("es" if local_ranks() > 1 else "")
    yield Finding("cores", "ok", f"{cores} cores for {processes} on this machine")
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


def _check_open_files(workers: int) -> Finding:
    """Checks the number of files that a process with its workers may open."""
    needed = _BASE_FILES + workers * _FILES_PER_WORKER
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{limit:,} may be open; {workers} worker processes need about {needed:,}"
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Finding("open files", "ok", text)
    remedy = f"run `ulimit -n {min(needed, most) if most > 0 else needed}` first, or bind a "
    return Finding("open files", "error", text, remedy + "smaller loading.workers")


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
