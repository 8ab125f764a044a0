"""Checks of real training steps: memory, speed and duration."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from jigclu.system import collectives, memory, progress
from jigclu.system.device import launched_rank
from jigclu.tasks.benchmark.bare_run import BareRun
from jigclu.tasks.benchmark.instruments import device_instruments, synchronize
from jigclu.tasks.doctor.finding import Finding
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.short_run import measure_first_steps
from jigclu.training.process import Process
from jigclu.training.settings import with_settings
from jigclu.training.task import TrainingTask

_STEPS = 10  # Measured steps.
_WARM_UP = 2  # Steps before them, besides those whose batches are read meanwhile.
_WAIT = 0.1  # Share of the time that steps may wait for their batches.


class StepTimes(NamedTuple):
    """Measured steps.

    seconds: of a step with its share of waiting.
    waiting: seconds of these that a step waited for its batch.
    reading: seconds that a batch takes if nothing but reading happens.
    """

    seconds: float
    waiting: float
    reading: float


def check_pretraining_steps(task: PretrainTask, process: Process) -> Iterator[Finding]:
    """Yields what steps of pre-training need; every rank must call it."""
    times = peak = None
    with suppress(torch.OutOfMemoryError):
        times, peak = measure_steps(task, process.device)
    if _on_any_rank(times is None, process.device):
        # Here, the error no longer keeps the tensors of the failed step alive.
        yield _find_micro_batch(task, process)
        return
    assert times is not None
    whole = memory.device_memory(process.device)
    used = "" if peak is None else f"; a step needs {peak / 1e9:,.2f} of {whole / 1e9:,.1f} GB"
    yield Finding("batch", "ok", f"{task.batch_size} images fit{used}")
    yield report_times(task, times)
    yield _duration(task, times.seconds)


def check_steps(task: TrainingTask) -> Iterator[Finding]:
    """Yields what the first steps of any training task need, taken in a run in another folder.

    Every rank must call it, without a process group; only the main one gets findings.
    """
    if getattr(task, "cache", None) is not None:
        yield Finding("steps", "ok", "are not measured, because they read cached features")
        return
    record, fits = None, False
    with suppress(torch.OutOfMemoryError):
        record, fits = measure_first_steps(task), True
    if launched_rank() > 0:
        return
    if not fits or record is None:
        yield Finding("batch", "error", "a step does not fit into memory", task.memory_advice)
        return
    used = f"{record['peak_memory_gb']:,.2f} GB"
    yield Finding("batch", "ok", f"{task.batch_size} images fit; peak memory {used}")
    images_per_second = record["images_per_second"]
    yield report_speed(images_per_second, record["data_wait_fraction"], "")
    yield _duration(task, task.batch_size / images_per_second)


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    return collectives.sum_over_ranks(torch.full((), float(flag), device=device)).item() > 0


def _duration(task: TrainingTask, seconds_per_step: float) -> Finding:
    hours = task.total_steps * seconds_per_step / 3600
    return Finding("duration", "ok", f"{task.total_steps:,} steps take about {hours:,.1f} hours")


def report_times(task: PretrainTask, times: StepTimes) -> Finding:
    """Returns who waits for whom: steps for batches, or the other way round."""
    images = task.batch_size
    reading = f"; reading alone {images / times.reading:,.1f}"
    return report_speed(images / times.seconds, times.waiting / times.seconds, reading)


def report_speed(images_per_second: float, waiting: float, reading: str) -> Finding:
    """Returns the speed of steps, and whether they wait for their batches.

    Args:
      images_per_second: with steps and reading side by side.
      waiting: share of the time that steps wait for batches, in [0, 1].
      reading: text about the speed of reading, or empty.
    """
    text = (
        f"{images_per_second:,.1f} images/s{reading}; steps wait for batches {waiting:.1%} of "
        "the time"
    )
    if waiting <= _WAIT:
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
        times = None
        with suppress(torch.OutOfMemoryError):
            times, _ = measure_steps(with_settings(task, micro_batch_size=size), process.device)
        if not _on_any_rank(times is None, process.device):
            remedy = f"bind pretrain.micro_batch_size = {size}, which fits"
            return Finding("batch", "error", f"{local} images do not fit into memory", remedy)
    remedy = "use a smaller encoder or smaller patches"
    return Finding("batch", "error", "not even one image fits into memory", remedy)
