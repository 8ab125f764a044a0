"""Pre-training for a given time, with a kNN score before and after."""

import tempfile
import time
from pathlib import Path

import torch

from jigclu.tasks.benchmark.tables import Table
from jigclu.tasks.benchmark.timing import synchronize
from jigclu.tasks.pretrain import PretrainTask


def measure_training(task: PretrainTask, seconds: float, device: torch.device) -> Table:
    """Trains in a temporary folder until the time is over, or the task's steps are.

    Args:
      task: with an evaluation.
      seconds: > 0, from the first batch asked for to the last step.
      device: on which to compute.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = task.start(Path(folder), "", device)
        before = run.score()
        began, waited = time.perf_counter(), 0.0
        for inputs, wait in run.inputs():
            metrics = run.take_step(inputs)
            waited += wait
            if time.perf_counter() - began >= seconds:
                break
        synchronize(device)
        taken = time.perf_counter() - began
        after = run.score()
    steps, machine = run.state.step, run.context.machine
    return Table(
        title="Training on generated images",
        columns=("figure", "value"),
        rows=[
            ("steps", float(steps)),
            ("epochs", steps / task.steps_per_epoch),
            ("seconds", taken),
            ("images/s", steps * task.batch_size / taken),
            ("host waits for data, %", 100 * waited / taken),
            ("loss of the last step", metrics["loss"].item()),
            ("kNN accuracy before, %", 100 * before["knn_accuracy"]),
            ("kNN accuracy after, %", 100 * after["knn_accuracy"]),
            ("kNN accuracy of chance, %", 100 * after["knn_accuracy_chance"]),
        ],
        note=(
            f"{task.encoder}, {task.batch_size} images per step, montages of "
            f"{task.grid * task.patch_size} pixels, {machine.precision.value}, "
            f"{'compiled' if machine.compile.value else 'eager'}, "
            f"{machine.workers.value} worker processes, "
            f"learning rate {task.learning_rate:g}."
        ),
        panels=(),
    )
