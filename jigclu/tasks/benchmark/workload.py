"""Facts of a pre-training task that tables mention, and variants of its arithmetic."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from jigclu.methods.jigsaw import Jigsaw
from jigclu.ops.augment import ColorAugmentation
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings

# Compilations that torch may keep per function: every variant needs another one.
RECOMPILATIONS = 128


class Workload(NamedTuple):
    """Size and arithmetic of a training step.

    batch_size: images of the global batch.
    patch_size: pixels.
    workers: processes that read images.
    queued_batches: batches that these processes read ahead.
    """

    encoder: str
    batch_size: int
    grid: int
    patch_size: int
    embedding_channels: int
    learning_rate: float
    steps_per_epoch: int
    precision: str
    compiled: bool
    workers: int
    queued_batches: int

    @property
    def montage_size(self) -> int:
        """Pixels per side of a montage."""
        return self.grid * self.patch_size

    @property
    def network(self) -> str:
        """The encoder and its input."""
        return f"{self.encoder}, montages of {self.montage_size} pixels"

    @property
    def patches(self) -> int:
        """Patches of the global batch."""
        return self.batch_size * self.grid**2


def jigsaw(task: PretrainTask) -> Jigsaw:
    """Returns the method of a task that pre-trains by jigsaw clustering."""
    assert isinstance(task.method, Jigsaw)
    return task.method


def color_augmentation(task: PretrainTask) -> ColorAugmentation:
    """Returns the augmentation of such a task."""
    assert isinstance(task.method.augmentation, ColorAugmentation)
    return task.method.augmentation


def describe(task: PretrainTask) -> Workload:
    """Returns the facts of a task, with the settings that its machine chooses."""
    machine, method = task.choose_machine(None), jigsaw(task)
    return Workload(
        encoder=task.encoder,
        batch_size=task.batch_size,
        grid=method.grid,
        patch_size=method.patch_size,
        embedding_channels=method.embedding_channels,
        learning_rate=task.learning_rate,
        steps_per_epoch=task.steps_per_epoch,
        precision=machine.precision.value,
        compiled=machine.compile.value,
        workers=machine.workers.value,
        queued_batches=machine.workers.value * task.loading.prefetch,
    )


class Arithmetic(NamedTuple):
    """Precision and memory format of a network."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision}, {'channels last' if self.channels_last else 'contiguous'}"


class Variant(NamedTuple):
    """A way to compute a training step."""

    compiled: bool
    arithmetic: Arithmetic

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'}, {self.arithmetic}"


def all_arithmetics(precisions: Sequence[str], channels_last: Sequence[bool]) -> list[Arithmetic]:
    """Returns all combinations."""
    return list(itertools.starmap(Arithmetic, itertools.product(precisions, channels_last)))


def all_variants(compiled: Sequence[bool], arithmetics: Sequence[Arithmetic]) -> list[Variant]:
    """Returns all combinations."""
    return list(itertools.starmap(Variant, itertools.product(compiled, arithmetics)))


def with_variant(task: PretrainTask, variant: Variant) -> PretrainTask:
    """Returns the same task, computed in a given way."""
    return with_settings(
        task,
        compile=variant.compiled,
        precision=variant.arithmetic.precision,
        channels_last=variant.arithmetic.channels_last,
    )


def with_compilation(task: PretrainTask, compiled: bool) -> PretrainTask:
    """Returns the same task, compiled or eager."""
    return with_settings(task, compile=compiled)


def with_steps(task: PretrainTask, steps: int) -> PretrainTask:
    """Returns the same task for exactly this number of steps."""
    return with_settings(
        task,
        # As in the whole run: 'auto' compiles nothing for a few steps.
        compile=describe(task).compiled,
        epochs=math.ceil(steps / task.steps_per_epoch),
        warmup_epochs=0,
        stop_after_steps=steps,
    )


def final_stage(task: PretrainTask) -> PretrainTask:
    """Returns the task as it trains at the end, at full patch size, from random weights."""
    return with_settings(task, smaller_patches=(), init_from=None, resume_from=None)
