"""The learning rate, and the size of patches, as functions of the epoch."""

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

from jigclu.system.errors import UserError


class Decay(Protocol):
    """Maps an epoch (fractional, from warmup_epochs to epochs) to a learning rate factor."""

    def __call__(self, epoch: float, epochs: int, warmup_epochs: float) -> float: ...


def cosine_decay(epoch: float, epochs: int, warmup_epochs: float) -> float:
    """Falls from 1 at the end of warm-up to 0 at the end of the run, along half a cosine.

    The published recipe has no warm-up; with one the cosine spans the remaining epochs, as
    in SimCLR (Chen et al. 2020) and MoCo v3 (Chen et al. 2021).
    """
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * progress))


def step_decay(
    epoch: float,
    epochs: int,
    warmup_epochs: float,
    *,
    milestones: Sequence[float],
    factor: float,
) -> float:
    """Multiplies by `factor` at each of the `milestones` reached, epochs since the start."""
    del epochs, warmup_epochs
    return factor ** sum(epoch >= milestone for milestone in milestones)


def learning_rate_at(
    step: int,
    steps_per_epoch: int,
    *,
    learning_rate: float,
    epochs: int,
    warmup_epochs: float,
    per_epoch: bool,
    decay: Decay,
) -> float:
    """Returns the learning rate of a step.

    During warm-up it grows linearly; the first step after warm-up has the full
    `learning_rate`, from which it decays.

    Args:
      step: from 0.
      steps_per_epoch: steps.
      learning_rate: the highest.
      epochs: of the run.
      warmup_epochs: epochs, 0 for none.
      per_epoch: hold the decay constant within an epoch, as published, or go by steps.
      decay: `cosine_decay` or a `step_decay`.
    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return learning_rate * (step + 1) / (warmup_epochs * steps_per_epoch + 1)
    if per_epoch:
        epoch = max(math.floor(epoch), warmup_epochs)
    return learning_rate * decay(epoch, epochs, warmup_epochs)


def patch_size_at(epoch: int, patch_size: int, smaller: Sequence[tuple[int, int]]) -> int:
    """Returns the side of the patches of an epoch, pixels.

    Args:
      epoch: from 0.
      patch_size: pixels, after the last of `smaller`.
      smaller: (epoch, pixels): before that epoch patches have so many pixels a side.
    """
    return next((size for until, size in smaller if epoch < until), patch_size)


def check_patch_sizes(patch_size: int, smaller: Sequence[tuple[int, int]], epochs: int) -> None:
    """Raises UserError unless the patches grow, a size an epoch, to patch_size at the end."""
    ends, sizes = [0, *(until for until, _ in smaller)], [0, *(size for _, size in smaller)]
    grow = all(a < b for a, b in itertools.pairwise([*sizes, patch_size]))
    if not grow or not all(a < b for a, b in itertools.pairwise([*ends, epochs])):
        raise UserError(
            f"smaller_patches is {tuple(smaller)}; it must be (epoch, pixels) pairs, both growing: "
            f"epochs within (0, {epochs}), pixels from 1 to less than patch_size = {patch_size}"
        )


def check_schedule(epochs: int, warmup_epochs: float) -> None:
    """Raises UserError for a value out of range."""
    if epochs < 1:
        raise UserError(f"epochs is {epochs}; it must be 1 or more")
    if not 0 <= warmup_epochs < epochs:
        raise UserError(f"warmup_epochs is {warmup_epochs}; it must lie in [0, epochs = {epochs})")
