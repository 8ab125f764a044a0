"""The fields that small training tasks of the tests have in common, and how they are run."""

import contextlib
import io
from pathlib import Path
from typing import Any

from jigclu.data.procedural import ProceduralImages
from jigclu.ops import optim, schedules
from jigclu.training import checkpoint
from jigclu.training.loop import TrainingTask
from tests.samples import AUGMENTATION

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
# 14 images in batches of 4: 3 steps an epoch, 6 in all.
PRETRAINING: dict[str, Any] = TRAINING | {
    "source": ProceduralImages(images=14, size=32, seed=0, split="train"),
    "batch_size": 4,
    "micro_batch_size": None,
    "grid": 2,
    "cross_ratio": 0.3,
    "patch_size": 16,
    "smaller_patches": (),
    "crop_scale": (0.2, 1.0),
    "crop_ratio": (0.75, 4 / 3),
    "scaled_decoding": True,
    "augmentation": AUGMENTATION,
    "pooling_map": 8,
    "embedding_channels": 128,
    "temperature": 0.3,
    "base_temperature": 0.07,
    "clustering_weight": 1.0,
    "location_weight": 1.0,
    "optimizer": optim.SGD(momentum=0.9, weight_decay=1e-4),
    "learning_rate": 0.03,
    "decay": schedules.CosineDecay(),
    "loss_scaling": optim.LossScaling(initial=65536.0, growth=2.0, backoff=0.5, interval=2000),
    "log_every": 2,
    "picture_every": 4,
    "checkpoint_every": 2,
    "keep_every": 4,
    "evaluation": None,
    "evaluate_every": 0,
}
LABELLED: dict[str, Any] = TRAINING | {
    "batch_size": 8,
    "decay": schedules.StepDecay(milestones=(1,), factor=0.1),
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
