"""Alarms: signs in metrics and measures that a pre-training run does not learn as it should."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from jigclu.training import online_probe
from jigclu.training.run_records import SCORES

# Steps after which learning must show, or half of a shorter run, but no fewer than the least.
_PATIENCE = 1000
_LEAST_PATIENCE = 30
# A random network reaches 3% of the way from chance to the floor of the clustering loss, because
# the patches of an image share its colors.
LEARNED = 0.05
_WINDOWS = 5  # Reports that are averaged against noise.
_RISE = 1.1
# Of embedding_deviation: random networks have 0.1 or more, trained ones about 1.
_COLLAPSED = 0.02
_LARGE_UPDATE = 0.5  # Usual are a thousandth in encoders, and up to a tenth in small heads.
_GROWTH = 30.0  # Of a parameter norm since the first report.
# Numbers that do not show what the method learns.
_EVALUATIONS = {online_probe.LOSS, online_probe.ACCURACY, *SCORES}

Values = Mapping[str, float]


class Alarms:
    """Watches the reports of a run, and raises each alarm once.

    Args:
      total_steps: of the run.
      loss_may_rise: whether a rising loss is no sign, see `Method.loss_may_rise`.
    """

    def __init__(self, total_steps: int, loss_may_rise: bool = False) -> None:
        self._patience = max(_LEAST_PATIENCE, min(_PATIENCE, total_steps // 2))
        self._loss_may_rise = loss_may_rise
        self._first: Values | None = None
        self._recent: deque[Values] = deque(maxlen=_WINDOWS)
        # Means of the losses of _WINDOWS reports in a row.
        self._means = 0
        self._least_mean = math.inf
        self._raised: set[str] = set()

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Takes note of earlier reports, those of metrics.jsonl, whose alarms are not repeated."""
        for line in lines:
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            self.check(line["step"], numbers)

    def check(self, step: int, values: Values) -> list[str]:
        """Returns the messages of new alarms; none for a report of bad steps or without a loss.

        Args:
          step: steps taken so far.
          values: metrics and measures of one report, with the chance levels and floors of some
            under `<name>_chance` and `<name>_floor`.
        """
        if "loss" not in values or not all(map(math.isfinite, values.values())):
            return []
        self._first = self._first or values
        self._recent.append(values)
        found = {"explosion": _explosion(self._first, values)}
        rise = self._rise()
        if not self._loss_may_rise:
            found["rise"] = rise
        if step >= self._patience:
            branches = _progress(self._recent)
            found |= {
                "collapse": _collapse(values),
                "nothing learned": _nothing_learned(branches, step),
                "dead branch": _dead_branch(branches, step),
            }
        new = {name: text for name, text in found.items() if text and name not in self._raised}
        self._raised.update(new)
        return [f"alarm: {text}" for text in new.values()]

    def _rise(self) -> str:
        if len(self._recent) < _WINDOWS:
            return ""
        mean = fmean(values["loss"] for values in self._recent)
        self._means += 1
        self._least_mean = min(self._least_mean, mean)
        if self._means <= _WINDOWS or mean <= _RISE * self._least_mean:
            return ""
        return (
            f"the loss rises: it was {self._least_mean:.4g}, and is {mean:.4g} (means of "
            f"{_WINDOWS} reports); lower the learning rate"
        )


def _explosion(first: Values, last: Values) -> str:
    for name, value in last.items():
        kind, _, module = name.partition("/")
        if kind == "update_ratio" and value > _LARGE_UPDATE:
            return (
                f"one step changes the weights of {module} by {value:.1%} of their norm, where "
                "less than a tenth is usual; lower the learning rate, or lengthen the warm-up"
            )
        before = first.get(name, 0.0)
        if kind == "parameter_norm" and value > _GROWTH * before > 0:
            return (
                f"the norm of the weights of {module} has grown from {before:.3g} to {value:.3g}; "
                "lower the learning rate"
            )
    return ""


def _collapse(values: Values) -> str:
    deviation = values.get("embedding_deviation", 1.0)
    if deviation > _COLLAPSED:
        return ""
    return (
        f"collapse: all patches have nearly the same embedding (deviation {deviation:.2g}, where "
        "1 is spread evenly); look at the pictures of the inputs, lower the learning rate, "
        "or use a larger temperature"
    )


def _progress(reports: Sequence[Values]) -> dict[str, float]:
    """Returns for each branch how far it is from chance (0) to the best possible (1).

    The branch of a loss or accuracy is its name without that word, as in clustering_loss; its
    best measure counts.
    """
    progress: dict[str, float] = {}
    for name in reports[-1]:
        branch, _, kind = name.rpartition("_")
        chance = f"{name}_chance"
        if chance not in reports[-1] or kind not in ("loss", "accuracy"):
            continue
        if name in _EVALUATIONS or not all(name in report for report in reports):
            continue
        floor = reports[-1].get(f"{name}_floor", 0.0)
        value = fmean(report[name] for report in reports)
        share = learned_share(name, value, reports[-1][chance], floor)
        progress[branch] = max(share, progress.get(branch, share))
    if len(progress) > 1:
        progress.pop("", None)  # The sum of the branches.
    return progress


def learned_share(name: str, value: float, chance: float, floor: float) -> float:
    """Returns how far a value is from chance (0) to the best possible (1); 0 if they are equal.

    Args:
      name: a loss, such as clustering_loss, or an accuracy, of which 1 is the best possible.
      value: of it.
      chance: value of guessing.
      floor: least possible value of a loss.
    """
    best = floor if name.endswith("loss") else 1.0
    return (value - chance) / (best - chance) if best != chance else 0.0


def _nothing_learned(branches: Mapping[str, float], step: int) -> str:
    if not branches or max(branches.values()) >= LEARNED:
        return ""
    return (
        f"nothing is learned beyond chance after {step} steps; try a learning rate three "
        "times larger or smaller, and look at the pictures of the inputs"
    )


def _dead_branch(branches: Mapping[str, float], step: int) -> str:
    dead = [branch for branch, share in branches.items() if share < LEARNED]
    if not dead or len(dead) == len(branches):
        return ""
    return (
        f"the {dead[0]} loss is still at chance after {step} steps, while the other one is "
        "learned; check its weight and its temperature"
    )
