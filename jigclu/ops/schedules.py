"""Schedules: learning rate and patch size as functions of the epoch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jigclu.system.errors import check


class Decay(Protocol):
    """Maps a fractional epoch in [warmup_epochs, epochs] to a factor of the learning rate."""

    def __call__(self, epoch: float, epochs: float, warmup_epochs: float) -> float: ...


@dataclass(frozen=True, kw_only=True)
class CosineDecay:
    """Half a cosine from 1 at the end of warm-up to 0 at the end of the run.

    The published recipe has no warm-up. With warm-up the cosine spans the remaining epochs, as
    in SimCLR (Chen et al., ICML 2020) and MoCo v3 (Chen et al., ICCV 2021).
    """

    def __call__(self, epoch: float, epochs: float, warmup_epochs: float) -> float:
        progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """Multiplies the learning rate by `factor` at each milestone.

    milestones: epochs since the start of the run, warm-up included.
    factor: of the learning rate at each milestone, in [0, 1].
    """

    milestones: Sequence[float]
    factor: float

    def __post_init__(self) -> None:
        check(0 <= self.factor <= 1, "factor", self.factor, "in [0, 1]")

    def __call__(self, epoch: float, epochs: float, warmup_epochs: float) -> float:
        del epochs, warmup_epochs
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


def learning_rate_at(
    step: int,
    steps_per_epoch: int,
    *,
    learning_rate: float,
    epochs: float,
    warmup_epochs: float,
    per_epoch: bool,
    decay: Decay,
) -> float:
    """Returns the learning rate of a step.

    It grows linearly during warm-up. The first step after warm-up has the full
    `learning_rate`, from which it decays.

    Args:
      step: from 0.
      steps_per_epoch: >= 1.
      learning_rate: the peak.
      epochs: of the whole run.
      warmup_epochs: may be fractional; 0 for no warm-up.
      per_epoch: whether to change the decay only between epochs, as published.
      decay: factor of the learning rate after warm-up.
    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return learning_rate * (step + 1) / (warmup_epochs * steps_per_epoch + 1)
    if per_epoch:
        epoch = max(math.floor(epoch), warmup_epochs)
    return learning_rate * decay(epoch, epochs, warmup_epochs)


def patch_size_at(epoch: int, patch_size: int, smaller: Sequence[tuple[int, int]]) -> int:
    """Returns the side of the patches in an epoch, pixels.

    Args:
      epoch: from 0.
      patch_size: side after the last entry of `smaller`, pixels.
      smaller: (epoch, pixels) pairs; before that epoch patches have that many pixels per side.
    """
    return next((size for until, size in smaller if epoch < until), patch_size)


def check_patch_sizes(patch_size: int, smaller: Sequence[tuple[int, int]], epochs: float) -> None:
    """Raises UserError unless patches grow from epoch to epoch and reach patch_size."""
    check(patch_size >= 1, "patch_size", patch_size, "1 or more, in pixels")
    ends = [0, *(until for until, _ in smaller), epochs]
    sizes = [0, *(size for _, size in smaller), patch_size]
    check(
        _increases(ends) and _increases(sizes),
        "smaller_patches",
        smaller,
        f"(epoch, pixels) pairs, both increasing: epochs within (0, {epochs}), pixels from 1 "
        f"to less than patch_size = {patch_size}",
    )


def _increases(values: Sequence[float]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))
