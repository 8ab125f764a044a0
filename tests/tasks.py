"""The fields that small training tasks of the tests have in common, and how they are run."""

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

from jigclu import checkpoint, schedules
from jigclu.training import TrainingTask

TRAINING: dict[str, Any] = {
    "seed": 0,
    "epochs": 2,
    "stop_after_steps": None,
    "encoder": "resnet18",
    "small_stem": True,
    "warmup_epochs": 0,
    "per_epoch": True,
    "device": "cpu",
    "precision": "float32",
    "compile": False,
    "channels_last": True,
    "workers": 0,
    "prefetch": 2,
    "init_from": None,
    "resume_from": None,
    "keep_last": 1,
}
LABELLED: dict[str, Any] = TRAINING | {
    "batch_size": 8,
    "decay": functools.partial(schedules.step_decay, milestones=(1,), factor=0.1),
    "train_size": 32,
    "crop_scale": (0.3, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_probability": 0.5,
    "resize": 32,
    "crop": 32,
    "mean": (0.5, 0.4, 0.3),
    "std": (0.25, 0.2, 0.3),
    "val_batch_size": 4,
    "log_every": 1,
    "keep_every": 0,
    "evaluate_every": 1,
}


def run_task(task: TrainingTask, workdir: Path, config: str) -> str:
    """Runs a task as the launcher does; returns what it printed."""
    task.check(workdir, config)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        task.run(workdir, config)
    return printed.getvalue()


def final(workdir: Path) -> dict[str, Any]:
    """Returns the last checkpoint of a run."""
    path = checkpoint.latest(workdir)
    assert path is not None
    return checkpoint.load(path, "cpu")
