"""Scaling of the published schedule to other batch sizes, by the linear rule.

A k times larger batch needs a k times larger learning rate and k times fewer iterations
(Goyal et al. 2017, section 2.1). Changing only one of them gives a different recipe.
"""

import math
from typing import NamedTuple

from jigclu.system import errors
from jigclu.system.errors import UserError


class Schedule(NamedTuple):
    """Settings that depend on the number of images per batch.

    All but the first two are in iterations. An evaluation_period of 0 evaluates only at the end.
    """

    images_per_batch: int
    learning_rate: float
    iterations: int
    steps: tuple[int, ...]
    warmup_iterations: int
    evaluation_period: int
    checkpoint_period: int


# Keys of the fields in detectron2's configuration.
KEYS = {
    "images_per_batch": "SOLVER.IMS_PER_BATCH",
    "learning_rate": "SOLVER.BASE_LR",
    "iterations": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup_iterations": "SOLVER.WARMUP_ITERS",
    "evaluation_period": "TEST.EVAL_PERIOD",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
}
_LEAST = {"images_per_batch": 1, "iterations": 1, "warmup_iterations": 0, "checkpoint_period": 1}
# Fields that influence the trained model; evaluation and checkpoint periods do not.
_RECIPE = Schedule._fields[:5]


def rescale(schedule: Schedule, images_per_batch: int) -> Schedule:
    """Returns the schedule for another number of images per batch, by the linear rule."""
    if images_per_batch < 1:
        raise UserError(f"--images-per-batch is {images_per_batch}; it must be 1 or more")
    factor = schedule.images_per_batch / images_per_batch

    def scale(iterations: int) -> int:
        # Never rounded to 0, which would disable it; 0 itself stays 0.
        return max(1, round(iterations * factor)) if iterations else 0

    return Schedule(
        images_per_batch=images_per_batch,
        learning_rate=schedule.learning_rate / factor,
        iterations=scale(schedule.iterations),
        steps=tuple(scale(step) for step in schedule.steps),
        warmup_iterations=scale(schedule.warmup_iterations),
        evaluation_period=scale(schedule.evaluation_period),
        checkpoint_period=scale(schedule.checkpoint_period),
    )


def check_range(schedule: Schedule) -> None:
    """Raises UserError for values out of range, or fewer iterations than detectron2 needs."""
    rate = schedule.learning_rate
    in_range = 0 < rate < math.inf
    errors.check(in_range, KEYS["learning_rate"], rate, "above 0, and finite")
    for field, least in _LEAST.items():
        number = getattr(schedule, field)
        errors.check(number >= least, KEYS[field], number, f"{least} or more")
    if schedule.iterations <= len(schedule.steps):
        # detectron2 cannot train so briefly.
        raise UserError(
            f"SOLVER.MAX_ITER is {schedule.iterations}; it must exceed the number of SOLVER.STEPS, "
            f"which is {len(schedule.steps)}"
        )


def check(published: Schedule, effective: Schedule) -> None:
    """Rejects a schedule of which only a part is rescaled.

    Raises:
      UserError: names the settings that do not fit the number of images per batch.
    """
    expected = rescale(published, effective.images_per_batch)
    wrong = [field for field in _RECIPE if not _agree(field, expected, effective)]
    if wrong:
        settings = ", ".join(
            f"{KEYS[field]} {_text(getattr(effective, field))} "
            f"(expected {_text(getattr(expected, field))})"
            for field in wrong
        )
        raise UserError(
            f"schedule: {settings} does not match the configuration's schedule at "
            f"{effective.images_per_batch} images per batch: give only --images-per-batch, which "
            "rescales everything, or --schedule-as-given if this is intended"
        )


def table(published: Schedule, effective: Schedule) -> str:
    """Returns both schedules side by side, in Markdown."""
    lines = ["| | configuration | effective |", "|---|---|---|"]
    lines += [
        f"| {key} | {_text(before)} | {_text(after)} |"
        for key, before, after in zip(KEYS.values(), published, effective, strict=True)
    ]
    return "\n".join(lines)


def _agree(field: str, expected: Schedule, effective: Schedule) -> bool:
    ours, theirs = getattr(expected, field), getattr(effective, field)
    if field == "learning_rate":
        # Tolerates rounding by hand.
        return math.isclose(ours, theirs, rel_tol=0.01)
    return ours == theirs


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
