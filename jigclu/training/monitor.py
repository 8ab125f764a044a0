"""Progress reporting of a run: its records, and a live line or log lines.

Metrics stay on the device and are transferred to the host once per window of steps, so that the
monitor never makes a step wait.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from jigclu.ops.jigsaw import place_names
from jigclu.ops.pictures import confusion_picture
from jigclu.system import memory, progress
from jigclu.system.charts import describe
from jigclu.training import metrics_file
from jigclu.training.alarms import Alarms
from jigclu.training.finite import Diverged
from jigclu.training.metrics_file import METRICS
from jigclu.training.records import Records
from jigclu.training.run_records import is_share

_REDRAW_SECONDS = 0.2
_SEPARATOR = "  "
_BAR = 10  # Characters of the progress bar.


class BadSteps(NamedTuple):
    """What to do about steps with metrics that are not finite.

    allowed: number in a row with which the run continues.
    advice: what the user can do after more of them.
    record: called once for each of them on the main rank, with its number and its problem.
    """

    allowed: int
    advice: str
    record: Callable[[int, str], None]


class _Throughput(NamedTuple):
    images_per_second: float
    data_wait_fraction: float


class Monitor:
    """Reports the progress of a run; ranks other than the main one only check the metrics.

    A step is given as the number of steps taken: 0 before the first, total_steps after the last.

    Args:
      workdir: of the run, for its records.
      total_steps: of the whole run.
      start_step: steps taken by earlier processes of this run.
      repeats_evaluation: whether the evaluation of start_step is repeated.
      images_per_step: images of the global batch.
      steps_per_epoch: for the epoch of a step.
      log_every: steps per window, >= 1.
      bad_steps: what to do about steps with metrics that are not finite.
      is_main: whether this rank writes and prints.
      references: constants that are reported with the metrics, such as their chance levels.
      alarms: of the measures; None for none.
      console: where to print; by default the console of the process.
    """

    def __init__(
        self,
        *,
        workdir: Path,
        total_steps: int,
        start_step: int,
        images_per_step: int,
        steps_per_epoch: int,
        log_every: int,
        bad_steps: BadSteps,
        is_main: bool,
        references: Mapping[str, float] = MappingProxyType({}),
        alarms: Alarms | None = None,
        console: progress.Console | None = None,
        repeats_evaluation: bool = False,
    ) -> None:
        self._workdir = workdir
        self.total_steps = total_steps
        self._start_step = start_step
        self._repeats_evaluation = repeats_evaluation
        self._images_per_step = images_per_step
        self._steps_per_epoch = steps_per_epoch
        self._log_every = log_every
        self._bad_steps = bad_steps
        self.is_main = is_main
        self._references = references
        self._alarms = alarms
        self._console = progress.CONSOLE if console is None else console
        self._records: Records | None = None
        self._drawn_at = -math.inf
        self._reported: dict[str, float] = {}
        self._seconds_per_step: float | None = None
        self._names: list[str] = []
        # The metrics of each step since the last report, [names].
        self._window: list[Tensor] = []
        self._window_start = start_step
        self._recorded = start_step
        self._bad_in_a_row = 0
        self._start_clock(timed_from=start_step)

    @classmethod
    def of_one_step(cls, workdir: Path, is_main: bool) -> "Monitor":
        """Returns the monitor of a task without training steps."""
        return cls(
            workdir=workdir,
            total_steps=0,
            start_step=0,
            images_per_step=1,
            steps_per_epoch=1,
            log_every=1,
            bad_steps=BadSteps(0, "", lambda step, problem: None),
            is_main=is_main,
        )

    def __enter__(self) -> "Monitor":
        if self.is_main:
            self._records = Records(
                self._workdir,
                self._start_step,
                self._repeats_evaluation,
                self._steps_per_epoch,
                self._images_per_step,
                self._references,
                self.message,
            )
            path = self._workdir / METRICS
            if self._alarms is not None and path.exists():
                self._alarms.replay(metrics_file.read(path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.is_main:
            self._console.set_line("")
        if self._records is not None:
            self._records.close()

    def reports_at(self, step: int) -> bool:
        """Returns whether a window ends with this step."""
        return step % self._log_every == 0 or step == self.total_steps

    def step(
        self,
        step: int,
        metrics: Mapping[str, Tensor],
        data_wait: float,
        measures: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Adds one step; reports at the end of each window of log_every steps and of the run.

        Args:
          step: steps taken so far, including this one: start_step + 1 to total_steps.
          metrics: scalars [] on one device, with the same names at every step.
          data_wait: seconds for which this step waited for its batch.
          measures: of the last step of a window: scalars [] or confusions int64 [places, places].

        Raises:
          Diverged: more steps in a row than allowed had a metric that was not finite.
          ValueError: the step is outside the run, or metrics have other names.
        """
        if not self._start_step < step <= self.total_steps:
            raise ValueError(
                f"step {step} is not in ({self._start_step}, {self.total_steps}]: "
                "count the steps taken, including this one"
            )
        self._add(metrics)
        self._data_wait += data_wait
        if step == self._start_step + 1:
            # The first step may compile, so its time does not represent the others.
            self._start_clock(timed_from=step)
        if self.reports_at(step):
            self._report(step, measures)
        elif time.monotonic() - self._drawn_at > _REDRAW_SECONDS and self._console.is_live:
            self._draw(step)

    def _add(self, metrics: Mapping[str, Tensor]) -> None:
        self._names = self._names or list(metrics)
        if list(metrics) != self._names:
            raise ValueError(f"metrics are {list(metrics)}; earlier steps had {self._names}")
        self._window.append(torch.stack([value.detach().float() for value in metrics.values()]))

    def _start_clock(self, timed_from: int) -> None:
        self._clock = time.monotonic()
        self._timed_from = timed_from
        self._data_wait = 0.0

    def _report(self, step: int, measures: Mapping[str, Tensor]) -> None:
        values, device = self.means(step), self._window[-1].device
        self._window.clear()
        throughput = self._throughput(step)
        self._window_start = step
        self._start_clock(timed_from=step)
        if throughput is not None:
            self._seconds_per_step = self._images_per_step / throughput.images_per_second
            values.update(throughput._asdict())
        confusions = {name: value for name, value in measures.items() if value.dim()}
        scalars = {name: value.item() for name, value in measures.items() if not value.dim()}
        reported = {**values, **scalars, **self._references}
        memory_gb = {"peak_memory_gb": memory.peak_memory(device) / 1e9}
        self.numbers(step, reported | self._progress(step) | memory_gb)
        for name, confusion in confusions.items():
            self.image(name, step, confusion_picture(confusion, place_names(len(confusion))))
        # Of the measures, the line shows those with a chance level.
        shown = {k: v for k, v in scalars.items() if f"{k}_chance" in self._references}
        self._reported = values | shown
        self._show_report(step)
        if self._alarms is not None and measures:
            self._raise_alarms(step, self._alarms.check(step, reported))

    def _progress(self, step: int) -> dict[str, float]:
        values = {"epoch": round(step / self._steps_per_epoch, 4)}
        if self._seconds_per_step is not None:
            values["eta_hours"] = (self.total_steps - step) * self._seconds_per_step / 3600
        return values

    def _raise_alarms(self, step: int, texts: Sequence[str]) -> None:
        for text in texts:
            self.message(text)
        if self._records is not None and texts:
            self._records.alarms(step, texts)

    def means(self, step: int) -> dict[str, float]:
        """Returns the means of the metrics since the last report; waits for the device.

        Bad steps are left out of the means. If any are allowed, `bad_steps` is their number.

        Args:
          step: steps taken so far.

        Raises:
          Diverged: more steps in a row than allowed had a metric that was not finite.
        """
        rows: list[list[float]] = torch.stack(self._window).tolist() if self._window else []
        good = []
        for number, row in enumerate(rows, self._window_start + 1):
            broken = [item for item in zip(self._names, row, strict=True) if not _is_finite(item)]
            if number > self._recorded:
                self._check_step(number, broken)
            if not broken:
                good.append(row)
        self._recorded = max(self._recorded, step)
        columns = zip(self._names, zip(*good, strict=True), strict=bool(good))
        values = {name: math.fsum(column) / len(good) for name, column in columns}
        if self._bad_steps.allowed:
            values["bad_steps"] = float(len(rows) - len(good))
        return values

    def _check_step(self, step: int, broken: Sequence[tuple[str, float]]) -> None:
        """Counts and records a step if metrics of it are broken; raises as `means`."""
        if not broken:
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        problem = ", ".join(f"{name} is {value}" for name, value in broken)
        if self.is_main:
            self._bad_steps.record(step, problem)
        if self._bad_in_a_row > self._bad_steps.allowed:
            row = f", bad step {self._bad_in_a_row} in a row" if self._bad_steps.allowed else ""
            raise Diverged(f"{problem} at step {step}{row}; {self._bad_steps.advice}")
        self.message(f"warning: step {step} was skipped: {problem}")

    def _throughput(self, step: int) -> _Throughput | None:
        steps = step - self._timed_from
        if steps == 0:
            return None
        seconds = max(time.monotonic() - self._clock, 1e-9)
        return _Throughput(
            steps * self._images_per_step / seconds, min(self._data_wait / seconds, 1.0)
        )

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time of a block, such as an evaluation, from images per second."""
        if self._window:
            # Reading the metrics waits for the steps queued on the device, whose time counts.
            self._window[-1].tolist()
        began = time.monotonic()
        try:
            yield
        finally:
            self._clock += time.monotonic() - began

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers of a step in TensorBoard and metrics.jsonl."""
        if self._records is not None:
            self._records.numbers(step, values)

    def image(self, name: str, step: int, image: Tensor) -> None:
        """Adds one picture, uint8 [3, height, width], to TensorBoard."""
        if self._records is not None:
            self._records.image(name, step, image)

    def embedding(
        self, name: str, step: int, features: Tensor, thumbnails: Tensor, labels: Sequence[str]
    ) -> None:
        """Adds an embedding to TensorBoard's projector; see `Records.embedding`."""
        if self._records is not None:
            self._records.embedding(name, step, features, thumbnails, labels)

    def settings(self, settings: Mapping[str, str], scores: Iterable[str]) -> None:
        """Adds the run to TensorBoard's table of runs; see `Records.settings`."""
        if self._records is not None:
            self._records.settings(settings, scores)

    def text(self, name: str, step: int, text: str) -> None:
        """Adds a text (Markdown) to TensorBoard."""
        if self._records is not None:
            self._records.text(name, step, text)

    def flush(self) -> None:
        """Completes all records so far, so that they survive the process."""
        if self._records is not None:
            self._records.flush()

    def message(self, text: str) -> None:
        """Prints a separate line, above the live line if there is one."""
        if self.is_main:
            self._console.message(text)

    def _show_report(self, step: int) -> None:
        """Prints a line that stays: on a terminal as many parts as fit, elsewhere all of them."""
        parts = self._parts(step)
        if self._console.is_live:
            self.message(_join_fitting(parts, self._console.columns))
            self._draw(step)
        else:
            self.message(_SEPARATOR.join(parts))

    def _draw(self, step: int) -> None:
        """Updates the live line, which begins with a bar."""
        if self.is_main:
            parts = [_bar(step, self.total_steps), *self._parts(step, is_live=True)]
            self._console.set_line(_join_fitting(parts, self._console.columns))
            self._drawn_at = time.monotonic()

    def _parts(self, step: int, is_live: bool = False) -> list[str]:
        """Returns the parts of the progress line, the most important first.

        The live line leaves out the chance level of the loss, to have room for the ETA.
        """
        metrics = dict(self._reported)
        rate = metrics.pop("images_per_second", None)
        wait = metrics.pop("data_wait_fraction", None)
        parts = [f"step {step}/{self.total_steps}"]
        if "loss" in metrics:
            chance = None if is_live else self._references.get("loss_chance")
            parts.append(describe_number("loss", metrics.pop("loss"), chance))
        if rate is not None:
            parts.append(f"images/s {rate:.1f}")
        if self._seconds_per_step is not None:
            left = round((self.total_steps - step) * self._seconds_per_step)
            parts.append(f"ETA {timedelta(seconds=left)}")
        if wait is not None:
            parts.append(f"data wait {describe(wait, is_share=True)}")
        for name, value in metrics.items():
            parts.append(describe_number(name, value, self._references.get(f"{name}_chance")))
        return parts


def _bar(step: int, total: int) -> str:
    done = _BAR * step // total
    return f"[{'=' * done}{' ' * (_BAR - done)}]"


def _is_finite(metric: tuple[str, float]) -> bool:
    return math.isfinite(metric[1])


def describe_number(name: str, value: float, chance: float | None) -> str:
    """Returns a number and its chance level, if it has one: "knn_accuracy 41.2% (chance 10.0%)"."""
    share = is_share(name)
    note = "" if chance is None else f" (chance {describe(chance, share)})"
    return f"{name} {describe(value, share)}{note}"


def _join_fitting(parts: Sequence[str], columns: int) -> str:
    """Joins as many parts as fit into the columns, at least the first one."""
    line = parts[0][:columns]
    for part in parts[1:]:
        longer = f"{line}{_SEPARATOR}{part}"
        if len(longer) > columns:
            break
        line = longer
    return line
