"""Training end to end: from the source's files to updated parameters, and what it waits for."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jigclu.data.loader import Batch
from jigclu.data.prefetch import prefetch_to_device
from jigclu.data.sampler import steps_per_epoch
from jigclu.system import progress
from jigclu.tasks.benchmark.stepping import jigsaw_step, jigsaw_stepper, random_inputs
from jigclu.tasks.benchmark.tables import Table
from jigclu.tasks.benchmark.timing import Action, interleaved, row, synchronize
from jigclu.tasks.pretrain import PretrainTask

_WARM = 3  # Steps that do not count, beside those whose batches are read meanwhile.


def measure_end_to_end(
    task: PretrainTask, steps: int, repetitions: int, device: torch.device
) -> Table:
    """Measures steps of a run, the same steps on noise, and reading alone.

    Args:
      task: that is run, in a temporary folder.
      steps: that count.
      repetitions: of the step on noise.
      device: on which to compute.
    """
    machine = task.choose_machine(None)
    # The first step compiles, and the workers fill their queues: what is in them was free.
    warm = _WARM + machine.workers.value * task.prefetch
    total = warm + steps
    task = dataclasses.replace(
        task,
        epochs=-(-total // steps_per_epoch(len(task.source), task.batch_size)),
        warmup_epochs=0,
        stop_after_steps=total,
        picture_every=0,
        evaluation=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        with row(1, 3, "files to parameters"):
            run = task.start(Path(folder), "", device)
            inputs = progress.track(run.inputs(), "steps", total)
            seconds, waited = _timed(inputs, run.take_step, warm, device)
        with row(2, 3, "reading alone"):
            run = task.start(Path(folder), "", device)
            inputs = progress.track(run.inputs(), "steps", total)
            reading, _ = _timed(inputs, lambda _: None, warm, device)
    with row(3, 3, "steps alone, on noise"):
        timed = interleaved({"step": jigsaw_step(task, device)}, repetitions, device)
    stepping = timed["step"].median
    images = task.batch_size * steps
    return Table(
        title="End to end",
        columns=("what", "images/s", "host waits for data, %", "beyond the steps alone, %"),
        rows=[
            (
                "files to parameters",
                images / seconds,
                100 * waited / seconds,
                100 * max(0.0, 1 - steps * stepping / seconds),
            ),
            ("steps alone, on noise", task.batch_size / stepping, None, None),
            ("reading alone", images / reading, None, None),
        ],
        note=(
            f"{task.encoder}, {task.batch_size} images, {machine.precision.value}, "
            f"{'compiled' if machine.compile.value else 'eager'}; "
            f"{machine.workers.value} processes read; "
            f"{steps} steps after {warm} that do not count, once. With a GPU the host may wait "
            "for data while that still computes: the last column is what reading costs."
        ),
        panels=(("images/s",),),
    )


def measure_copies(task: PretrainTask, repetitions: int, device: torch.device) -> Table:
    """Measures how much of the copies from host memory the steps have to wait for.

    Args:
      task: whose step is taken, on noise; nothing is read.
      repetitions: >= 1.
      device: on which to compute.
    """
    machine = task.choose_machine(None)
    take, inputs = jigsaw_stepper(task, device), random_inputs(task, device)
    patches = inputs.slots.cpu().unflatten(0, (task.batch_size, task.grid**2))
    if machine.pin_memory.value:
        patches = patches.pin_memory()
    batch = Batch(patches, 0)
    ahead = prefetch_to_device(itertools.repeat(batch), device)

    def take_patches(values: Tensor) -> None:
        take(inputs._replace(slots=values.flatten(0, 1)))

    actions: dict[str, Action] = {
        "no copies": lambda: take(inputs),
        "copied during the step before": lambda: take_patches(next(ahead).crops),
        "copied before each step": lambda: take_patches(patches.to(device)),
    }
    seconds = {
        name: timed.median for name, timed in interleaved(actions, repetitions, device).items()
    }
    least = seconds["no copies"]
    return Table(
        title="Copies to the device",
        columns=("batches", "images/s", "device waits for data, %"),
        rows=[
            (name, task.batch_size / taken, 100 * max(0.0, 1 - least / taken))
            for name, taken in seconds.items()
        ],
        note=(
            f"{task.encoder}, {task.batch_size} images, {machine.precision.value}, "
            f"{'compiled' if machine.compile.value else 'eager'}; "
            f"{patches.nbytes / 1e6:.0f} MB per step from page-locked memory. The device waits "
            "for the time that a step takes longer than one without copies. Training uses the "
            "second row."
        ),
        panels=(("images/s",),),
    )


def _timed(
    inputs: Iterator[tuple[Any, float]],
    take: Callable[[Any], object],
    warm: int,
    device: torch.device,
) -> tuple[float, float]:
    """Returns the seconds of all steps but the warm ones, and those waited for inputs."""
    began, waited = 0.0, 0.0
    for number, (batch, wait) in enumerate(inputs):
        if number == warm:
            synchronize(device)
            # The clock starts when the batch is there: its wait belongs to the step before.
            began = time.perf_counter()
        elif number > warm:
            waited += wait
        take(batch)
    synchronize(device)
    return time.perf_counter() - began, waited
