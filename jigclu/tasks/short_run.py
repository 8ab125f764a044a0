"""A few steps of a training task, run as a whole in a temporary folder, to be measured."""

import io
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from jigclu.training import metrics_file
from jigclu.training.metrics_file import METRICS
from jigclu.training.settings import with_settings
from jigclu.training.task import TrainingTask

_STEPS = 10  # Of a log window.


def measure_first_steps(task: TrainingTask) -> dict[str, Any] | None:
    """Returns the numbers of the second log window of a task that starts from random weights.

    Among them are images_per_second, data_wait_fraction and peak_memory_gb. Evaluations and smaller
    patches of the first epochs are left out. Every rank must call it, without a process group; only
    the main one gets numbers, the others None.
    """
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        _run(task, Path(folder))
        path = Path(folder) / METRICS
        return metrics_file.read(path)[-1] if path.exists() else None


def measure_speeds(
    tasks: Mapping[str, TrainingTask], rounds: int, message: Callable[[str], None]
) -> dict[str, float]:
    """Returns the seconds of training per image of each task: the median of rounds in turns."""
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name, task in tasks.items():
            message(f"measuring the speed of {name}, {number + 1} of {rounds}")
            record = measure_first_steps(task)
            assert record is not None
            measured[name].append(1 / record["images_per_second"])
    return {name: statistics.median(values) for name, values in measured.items()}


def _run(task: TrainingTask, folder: Path) -> None:
    """Runs two log windows, of which the first one is a warm-up."""
    steps = 2 * _STEPS
    count = itertools.count(1)
    # Evaluations, which only supervised tasks have between steps, are paused in the record.
    changed: Any = with_settings(
        task,
        epochs=max(task.schedule.epochs, math.ceil(steps / task.steps_per_epoch) + 1),
        stop_after_steps=None,
        log_every=_STEPS,
        picture_every=0,
        init_from=None,
        resume_from=None,
    )
    if hasattr(task, "evaluators"):
        changed = with_settings(changed, evaluators=())
    if hasattr(getattr(task, "method", None), "smaller_patches"):
        changed = with_settings(changed, smaller_patches=())
    changed.run(folder, "", lambda: next(count) == steps)
