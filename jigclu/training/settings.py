"""Groups of settings that all training tasks share; each group checks its own values."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from jigclu.ops import schedules
from jigclu.ops.optim import LossScaling
from jigclu.system.device import DEVICES
from jigclu.system.errors import check
from jigclu.system.machine import PRECISIONS, Auto, check_workers
from jigclu.system.on_resume import Free, Logged, Rule, field_rules

Owner = TypeVar("Owner")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Device and arithmetic.

    Attributes:
      device: "cpu", "cuda", or "auto" (CUDA if there is a GPU).
      precision: "float32", autocast to "bfloat16" or "float16", or "auto".
      compile: whether torch.compile compiles forward pass and update, or "auto".
      channels_last: whether images and weights are in channels-last format, or "auto".
      loss_scaling: dynamic loss scale, used in float16 only.
      rank_timeout: seconds that ranks wait for each other.
    """

    device: str
    precision: str
    compile: bool | Auto
    channels_last: bool | Auto
    loss_scaling: LossScaling
    rank_timeout: float

    def __post_init__(self) -> None:
        check(self.device in DEVICES, "device", self.device, f"one of {_quote(DEVICES)}")
        precisions = ("auto", *PRECISIONS)
        known = f"one of {_quote(precisions)}"
        check(self.precision in precisions, "precision", self.precision, known)
        check(self.rank_timeout > 0, "rank_timeout", self.rank_timeout, "above 0, in seconds")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Worker processes that read images.

    Attributes:
      workers: per device; 0 reads in the training process, "auto" chooses by the cores.
      prefetch: batches that each worker keeps ready.
      timeout: seconds to wait for a batch of the workers.
      most_unreadable: share of unreadable images above which a task stops that otherwise skips
        them, in [0, 1].
    """

    workers: int | Auto
    prefetch: int
    timeout: float
    most_unreadable: float

    def __post_init__(self) -> None:
        check_workers(self.workers)
        check(self.prefetch >= 1, "prefetch", self.prefetch, "1 or more")
        check(self.timeout > 0, "timeout", self.timeout, "above 0, in seconds")
        share = self.most_unreadable
        check(0 <= share <= 1, "most_unreadable", share, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a run, and its learning-rate schedule.

    Attributes:
      epochs: passes over the training images; the last one may be a part of one.
      warmup_epochs: epochs of linear warm-up, in [0, epochs).
      decay: factor of the learning rate after warm-up, a function of the epoch.
      per_epoch: whether the rate decays only between epochs, or at every step.
      stop_after_steps: steps after which the run ends early, on the schedule of the whole
        run; None runs all epochs.
      bad_steps: steps in a row that are skipped if their loss or gradient is not finite, before
        the run stops.
    """

    epochs: float
    warmup_epochs: float
    decay: schedules.Decay
    per_epoch: bool
    stop_after_steps: Free[int | None]
    bad_steps: Logged[int]

    def __post_init__(self) -> None:
        check(0 < self.epochs < math.inf, "epochs", self.epochs, "above 0, and finite")
        check(
            0 <= self.warmup_epochs < self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"in [0, epochs = {self.epochs})",
        )
        stop = self.stop_after_steps
        check(stop is None or stop >= 1, "stop_after_steps", stop, "1 or more, or None")
        check(self.bad_steps >= 0, "bad_steps", self.bad_steps, "0 or more")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps of the run."""
        steps = self.whole_steps(steps_per_epoch)
        return steps if self.stop_after_steps is None else min(steps, self.stop_after_steps)

    def whole_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps of all epochs, 1 or more."""
        return max(1, round(self.epochs * steps_per_epoch))

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Returns the factor of the learning rate at a step, counted from 0."""
        return schedules.learning_rate_at(
            step,
            steps_per_epoch,
            learning_rate=1.0,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            per_epoch=self.per_epoch,
            decay=self.decay,
        )


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Checkpoints of a run.

    Attributes:
      every: steps between checkpoints; the last step is always saved.
      keep_last: number of latest checkpoints to keep.
      keep_every: steps; checkpoints at its multiples are kept forever (0: none).
    """

    every: int
    keep_last: int
    keep_every: int

    def __post_init__(self) -> None:
        check(self.every >= 1, "every", self.every, "1 or more")
        check(self.keep_last >= 1, "keep_last", self.keep_last, "1 or more")
        check(self.keep_every >= 0, "keep_every", self.keep_every, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Log lines and pictures of a run.

    Attributes:
      log_every: steps between log lines; each has the means over those steps.
      picture_every: steps between pictures of training images (0: none).
    """

    log_every: int
    picture_every: int

    def __post_init__(self) -> None:
        check(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        check(self.picture_every >= 0, "picture_every", self.picture_every, "0 or more")


def with_settings(owner: Owner, **changes: Any) -> Owner:
    """Returns a copy of a dataclass with other values of its fields, or of its groups' fields.

    `with_settings(task, epochs=3)` replaces `task.schedule`, the first field of the task whose
    value has a field `epochs`.

    Raises:
      ValueError: no field has that name.
    """
    own = {field.name for field in dataclasses.fields(owner)}  # type: ignore[arg-type]
    direct = {name: changes.pop(name) for name in list(changes) if name in own}
    for field in dataclasses.fields(owner):  # type: ignore[arg-type]
        part = direct.get(field.name, getattr(owner, field.name))
        if dataclasses.is_dataclass(part):
            names = {inner.name for inner in dataclasses.fields(part)}
            taken = {name: changes.pop(name) for name in list(changes) if name in names}
            if taken:
                direct[field.name] = dataclasses.replace(part, **taken)  # type: ignore[type-var]
    if changes:
        raise ValueError(f"{type(owner).__name__} has no settings {', '.join(changes)}")
    return dataclasses.replace(owner, **direct)  # type: ignore[type-var]


def learning_settings(task: Any) -> dict[str, str]:
    """Returns the settings that a resumed run compares with its checkpoint's, by path.

    These are the fields of the task and of the dataclasses in it, such as `schedule.epochs` or
    `method.augmentation.hue`, that determine what a run learns, or affect it in some way.
    """
    compared = (Rule.FIXED, Rule.LOGGED, Rule.INITIAL, Rule.SAME_WEIGHTS)
    return {path: repr(value) for path, rule, value in _settings(task, "") if rule in compared}


def resume_rules(task: Any) -> dict[str, Rule]:
    """Returns the rules of the settings that a resumed run may change, by path."""
    return {path: rule for path, rule, _ in _settings(task, "") if rule is not Rule.FIXED}


def _settings(owner: Any, prefix: str) -> Iterator[tuple[str, Rule, Any]]:
    rules = field_rules(type(owner))
    for field in dataclasses.fields(owner):
        value, path, rule = getattr(owner, field.name), f"{prefix}{field.name}", rules[field.name]
        if dataclasses.is_dataclass(value) and rule is Rule.FIXED:
            yield path, rule, type(value).__name__
            yield from _settings(value, f"{path}.")
        else:
            yield path, rule, value


def _quote(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
