"""Reads what a run has recorded in its workdir: bindings, starts, numbers and alarms."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jigclu.system.errors import UserError
from jigclu.training import metrics_file
from jigclu.training.metrics_file import METRICS

CONFIG, ENVIRONMENT = "config.gin", "environment.json"
# Scores of evaluations, also those of the stages of a reproduction; the most telling ones first.
SCORES = ("knn_accuracy", "probe_accuracy", "top1", "mean_iou", "top5", "pixel_accuracy")
_REFERENCE = re.compile(r"_(chance|floor|published)$")
_SHARE = re.compile(r"(accuracy|top\d+|iou|retrieval|fraction)($|/)")
_NO_NUMBERS = ("step", "epoch", "images", "time", "alarms")

Points = list[tuple[float, float]]


class Start(NamedTuple):
    """One start of a run.

    time: in seconds since 1970.
    environment: versions, device, commit and command, as `environment.describe` returns them.
    """

    time: float
    environment: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The records of a run.

    Attributes:
      workdir: of the run.
      config: its bindings, in gin's syntax; empty if they are missing.
      starts: in their order.
      lines: of metrics.jsonl, in the order of steps.
    """

    workdir: Path
    config: str
    starts: list[Start]
    lines: list[dict[str, Any]]

    @property
    def task(self) -> str:
        """Name of the task, such as pretrain."""
        found = re.search(r"^launch\.task = @(?:\w+/)*(\w+)\(\)", self.config, re.MULTILINE)
        return found[1] if found else "run"

    @cached_property
    def bindings(self) -> dict[str, str]:
        """Values of all bindings by name, in gin's syntax."""
        # gin continues long values in indented lines.
        text = re.sub(r"\\?\n +", " ", self.config)
        lines = (line for line in text.splitlines() if not line.startswith(("#", "import ")))
        pairs = (line.partition(" = ") for line in lines)
        return {name: value.strip() for name, _, value in pairs if value}

    @property
    def is_from_scratch(self) -> bool:
        """Whether the task uses no weights of another run."""
        return self.bindings.get(f"{self.task}.init_from", "None") == "None"

    @cached_property
    def names(self) -> list[str]:
        """Names of all numbers, without those that they are compared with."""
        found = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in found if name not in _NO_NUMBERS and not _REFERENCE.search(name)]

    @cached_property
    def scores(self) -> list[str]:
        """Names of the scores of evaluations, the most telling ones first.

        Lines without a loss, such as that of the initial weights, only have scores.
        """
        known = [name for name in self.names if name.rpartition("/")[2] in SCORES]
        known.sort(key=lambda name: SCORES.index(name.rpartition("/")[2]))
        others = {name for line in self.lines if "loss" not in line for name in line}
        iou = [name for name in self.names if name.startswith("iou/") or name in others]
        return [*known, *(name for name in iou if name not in known)]

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """Step and text of each alarm."""
        return [
            (line["step"], str(text).removeprefix("alarm: "))
            for line in self.lines
            for text in line.get("alarms", ())
        ]

    @property
    def images(self) -> int:
        """Images that the network was trained on; each counts once per epoch."""
        return int(self.lines[-1].get("images", 0)) if self.lines else 0

    @property
    def processes(self) -> int:
        """Processes of the last start, each of which uses one device."""
        return int(self.starts[-1].environment.get("processes", 1)) if self.starts else 1

    def points(self, name: str, x: str) -> Points:
        """Returns a number over another one of the same lines, such as the step."""
        return [(line[x], line[name]) for line in self.lines if name in line and x in line]

    def over_hours(self, name: str) -> Points:
        """Returns a number over the hours of work before it."""
        spans = self._spans()
        return [(_hours(spans, line["time"]), line[name]) for line in self.lines if name in line]

    def first(self, name: str) -> float | None:
        """Returns a number of the first line that has it."""
        return next((line[name] for line in self.lines if name in line), None)

    def last(self, name: str) -> float | None:
        """Returns a number of the last line that has it."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    def untrained(self, name: str) -> float | None:
        """Returns a score of the random initial weights, if they were evaluated and trained."""
        trains = self.images or "schedule.epochs" in self.bindings
        if not trains or not self.is_from_scratch:
            return None
        return next((value for step, value in self.points(name, "step") if step == 0), None)

    def trained(self, name: str) -> list[float]:
        """Returns the values of a score, without that of `untrained`."""
        points = self.points(name, "step")
        return [value for _, value in points[0 if self.untrained(name) is None else 1 :]]

    def levels(self, name: str) -> dict[str, float]:
        """Returns the chance level and the floor of a number, if it has them."""
        found = {kind: self.last(f"{name}_{kind}") for kind in ("chance", "floor")}
        return {kind: value for kind, value in found.items() if value is not None}

    def hours(self, until: float = math.inf) -> float:
        """Returns the hours of work before a time (in seconds since 1970) or the last record.

        The time between the last record of a start and the next start is left out.
        """
        last = self.lines[-1]["time"] if self.lines else 0.0
        return _hours(self._spans(), last if until == math.inf else until)

    def _spans(self) -> list[tuple[float, float]]:
        """Returns begin and end of the work of each start; the last one has no end."""
        times = [line["time"] for line in self.lines]
        spans = []
        for start, later in pairwise(self.starts):
            ends = [time for time in times if start.time <= time < later.time]
            spans.append((start.time, max(ends, default=start.time)))
        return [*spans, *((start.time, math.inf) for start in self.starts[-1:])]


def _hours(spans: Sequence[tuple[float, float]], until: float) -> float:
    return sum(max(0.0, min(end, until) - begin) for begin, end in spans) / 3600


def is_share(name: str) -> bool:
    """Returns whether a number is a share in [0, 1], which is shown as a percentage."""
    return bool(_SHARE.search(name))


def read(workdir: Path) -> Run:
    """Reads the records of a run, as far as they exist.

    Raises:
      UserError: the folder has no records at all, or they cannot be read.
    """
    config, metrics = workdir / CONFIG, workdir / METRICS
    if not config.exists() and not metrics.exists():
        raise UserError(
            f"{workdir} is not the workdir of a run: it has neither {CONFIG} nor {METRICS}"
        )
    try:
        lines = metrics_file.read(metrics) if metrics.exists() else []
        text = config.read_text(encoding="utf-8") if config.exists() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"the records in {workdir} cannot be read: {error}") from error
    numbers = [_numbers(line) for line in lines if isinstance(line.get("time"), float)]
    return Run(workdir, text, _starts(workdir / ENVIRONMENT), numbers)


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers and the alarms of a line; there is nothing else unless it was edited."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, list if name == "alarms" else int | float)
    }


def _starts(path: Path) -> list[Start]:
    starts = []
    with suppress(OSError, ValueError, TypeError, KeyError):
        for start in json.loads(path.read_text(encoding="utf-8")):
            moment = datetime.strptime(start["started"], "%Y-%m-%dT%H:%M:%S%z")
            starts.append(Start(moment.timestamp(), start))
    return starts
