"""Small training tasks, changes of their settings, and a test case that runs them."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from torch import Tensor

from jigclu.data.procedural import ProceduralImages
from jigclu.ops import optim, schedules
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.stages import Task
from jigclu.training import checkpoint
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.settings import Compute, Loading, Reporting, Saving, Schedule
from tests.folder_case import FolderTestCase
from tests.samples import JIGSAW, eval_transform

EVAL_TRANSFORM = eval_transform(resize=32, crop=32)
COMPUTE = Compute(
    device="cpu",
    precision="float32",
    compile=False,
    channels_last=True,
    loss_scaling=optim.LossScaling(initial=65536.0, growth=2.0, backoff=0.5, interval=2000),
    rank_timeout=60,
)
LOADING = Loading(workers=0, prefetch=2, timeout=60, most_unreadable=0.5)
SCHEDULE = Schedule(
    epochs=2,
    warmup_epochs=0,
    decay=schedules.CosineDecay(),
    per_epoch=True,
    stop_after_steps=None,
    bad_steps=0,
)
KNN = KnnEvaluator(
    every=0,
    bank=ProceduralImages(images=20, size=32, seed=0, split="train"),
    queries=ProceduralImages(images=10, size=32, seed=0, split="val"),
    eval_transform=EVAL_TRANSFORM,
    neighbors=3,
    temperature=0.07,
    batch_size=10,
    skip_unreadable=False,
    loading=LOADING,
)
TRAINING: dict[str, Any] = {
    "seed": 0,
    "encoder": "resnet18",
    "small_stem": True,
    "init_from": None,
    "resume_from": None,
    "compute": COMPUTE,
    "loading": LOADING,
}
# 14 images in batches of 4: 3 steps per epoch, 6 in all.
PRETRAINING = PretrainTask(
    **TRAINING,
    source=ProceduralImages(images=14, size=32, seed=0, split="train"),
    batch_size=4,
    micro_batch_size=None,
    method=dataclasses.replace(JIGSAW, patch_size=16, pooling_map=8, embedding_channels=128),
    optimizer=optim.SGD(
        momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True
    ),
    learning_rate=0.03,
    schedule=SCHEDULE,
    saving=Saving(every=2, keep_last=1, keep_every=4),
    reporting=Reporting(log_every=2, picture_every=4),
    average_momentum=0.0,
    evaluators=(),
    online_probe=None,
)
LABELED: dict[str, Any] = TRAINING | {
    "batch_size": 8,
    "schedule": dataclasses.replace(
        SCHEDULE, decay=schedules.StepDecay(milestones=(1,), factor=0.1)
    ),
    "saving": Saving(every=1000, keep_last=1, keep_every=0),
    "reporting": Reporting(log_every=1, picture_every=0),
    "train_size": 32,
    "crop_scale": (0.3, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "flip_probability": 0.5,
    "eval_transform": EVAL_TRANSFORM,
    "val_batch_size": 4,
    "evaluate_every": 1,
}


# 20 images in batches of 8: 2 steps per epoch, 4 in all.
FINETUNING = FinetuneTask(
    **LABELED,
    source=ProceduralImages(images=20, size=32, seed=0, split="train"),
    val=ProceduralImages(images=7, size=32, seed=0, split="val"),
    optimizer=optim.SGD(
        momentum=0.9, nesterov=False, weight_decay=0.0, decay_norms_and_biases=True
    ),
    learning_rate=0.01,
    head_learning_rate=None,
)


def run_task(task: Task, workdir: Path, config: str = "") -> str:
    """Runs a task as the launcher does; returns what it printed."""
    task.check(workdir)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        task.run(workdir, config)
    return printed.getvalue()


def final(workdir: Path) -> dict[str, Any]:
    """Returns the contents of the last checkpoint of a run."""
    path = checkpoint.latest(workdir)
    assert path is not None
    return checkpoint.load(path, "cpu")


class TaskTestCase(FolderTestCase):
    """A test case with a temporary folder, which reads what runs leave there."""

    def events(self, workdir: Path) -> EventAccumulator:
        """Returns all that a run wrote to TensorBoard."""
        # All pictures; by default it keeps a sample.
        events = EventAccumulator(str(workdir / "tensorboard"), size_guidance={IMAGES: 0})
        events.Reload()
        return events

    def assert_tensors_close(
        self, actual: dict[str, Tensor], expected: dict[str, Tensor], relative: float
    ) -> None:
        """Compares tensors by the norm of their difference; 0 demands equality."""
        self.assertEqual(list(actual), list(expected))
        for name, value in expected.items():
            difference = (actual[name] - value).norm() / value.norm().clamp_min(1e-12)
            self.assertLessEqual(difference.item(), relative, name)

    def assert_same_training(self, actual: dict[str, Any], expected: dict[str, Any]) -> None:
        """Compares two checkpoints: step, parameters, buffers and optimizer must be equal."""
        self.assertEqual(actual["step"], expected["step"])
        for ours, theirs in (
            (actual["parameters"], expected["parameters"]),
            (actual["buffers"], expected["buffers"]),
            (_flatten(actual["optimizer"]), _flatten(expected["optimizer"])),
        ):
            self.assert_tensors_close(ours, theirs, 0.0)


def _flatten(optimizer: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of an optimizer in a checkpoint: moments and counters."""
    flat: dict[str, Tensor] = {}
    for name, value in optimizer.items():
        parts = {"": value} if isinstance(value, Tensor) else value
        flat |= {f"{name} {part}": tensor.float() for part, tensor in parts.items()}
    return flat
