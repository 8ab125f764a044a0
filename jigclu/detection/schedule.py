"""The published schedule at another number of images per batch: the linear rule.

Goyal et al. 2017, section 2.1: k times the images per batch need k times the learning
rate and a k-th of the iterations; one without the other is another recipe.
"""

import math
from typing import NamedTuple

from jigclu.system.errors import UserError


class Schedule(NamedTuple):
    """What the number of images per batch scales; all but the first two in iterations.

    evaluation_period: 0: evaluation at the end alone.
    """

    images_per_batch: int
    learning_rate: float
    iterations: int
    steps: tuple[int, ...]
    warmup_iterations: int
    evaluation_period: int
    checkpoint_period: int


# Fields by their keys in a configuration of detectron2.
KEYS = {
    "images_per_batch": "SOLVER.IMS_PER_BATCH",
    "learning_rate": "SOLVER.BASE_LR",
    "iterations": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup_iterations": "SOLVER.WARMUP_ITERS",
    "evaluation_period": "TEST.EVAL_PERIOD",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
}
# What is learned depends on these; how often it is scored or saved does not.
_RECIPE = Schedule._fields[:5]


def rescaled(schedule: Schedule, images_per_batch: int) -> Schedule:
    """Returns the schedule at another number of images per batch, by the linear rule.

    Raises:
      UserError: fewer than one image.
    """
    if images_per_batch < 1:
        raise UserError(f"--images-per-batch is {images_per_batch}; give at least 1")
    factor = schedule.images_per_batch / images_per_batch

    def scale(iterations: int) -> int:
        # Not rounded to 0, which would mean never; 0 itself stays.
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
    """Raises UserError for a schedule without images or iterations."""
    for field in ("images_per_batch", "iterations"):
        if getattr(schedule, field) < 1:
            raise UserError(f"{KEYS[field]} is {getattr(schedule, field)}; give at least 1")


def check(published: Schedule, effective: Schedule) -> None:
    """Refuses a schedule of which a part alone is rescaled.

    Raises:
      UserError: names what does not fit the images per batch.
    """
    expected = rescaled(published, effective.images_per_batch)
    wrong = [field for field in _RECIPE if not _agree(field, expected, effective)]
    if wrong:
        told = ", ".join(
            f"{KEYS[field]} {_text(getattr(effective, field))} "
            f"(expected {_text(getattr(expected, field))})"
            for field in wrong
        )
        raise UserError(
            f"schedule: {told} does not follow from the published one at "
            f"{effective.images_per_batch} images per batch; give --images-per-batch alone, "
            "which rescales all, or --schedule-as-given if this is meant"
        )


def table(published: Schedule, effective: Schedule) -> str:
    """Returns both schedules side by side, in Markdown."""
    lines = ["| | published | effective |", "|---|---|---|"]
    lines += [
        f"| {key} | {_text(before)} | {_text(after)} |"
        for key, before, after in zip(KEYS.values(), published, effective, strict=True)
    ]
    return "\n".join(lines)


def _agree(field: str, expected: Schedule, effective: Schedule) -> bool:
    ours, theirs = getattr(expected, field), getattr(effective, field)
    if field == "learning_rate":
        # As rounded by hand.
        return math.isclose(ours, theirs, rel_tol=0.01)
    return ours == theirs


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
