"""The training loop and its result."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from jigclu.system import collectives, machine, progress, signals
from jigclu.training import checkpoint, resume
from jigclu.training.bad_step_records import record_bad_step
from jigclu.training.finite import check_finite
from jigclu.training.monitor import BadSteps, Monitor, describe_number
from jigclu.training.process import Process
from jigclu.training.resume import History
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult
from jigclu.training.task import TrainingTask

# A signal during an evaluation loses at most so many seconds of training.
_AT_RISK_SECONDS = 30.0

Batch = TypeVar("Batch")
Scores = dict[str, float]


class Evaluation(NamedTuple):
    """An evaluation of the network, and when it takes place.

    every: steps between evaluations; 0 for none before the last step, which always has one.
    before_training: whether the initial weights are also evaluated.
    evaluate: (monitor, step) to scores by name, on every rank; may report more to the monitor.
    """

    every: int
    before_training: bool
    evaluate: Callable[[Monitor, int], Scores]


class RunResult(NamedTuple):
    """Result of a run.

    scores: last scores, by name.
    checkpoint: of the last step; None for tasks that do not train.
    is_stopped: whether `should_stop` ended the run before its last step and evaluation.
    """

    scores: Scores
    checkpoint: Path | None
    is_stopped: bool = False


def train(
    task: TrainingTask,
    process: Process,
    *,
    state: TrainState,
    initialize: Callable[[str], str],
    batches: Callable[[int], Iterable[Batch]],
    prepare: Callable[[Batch, int], Any],
    take_step: Callable[[TrainState, Any, bool], StepResult],
    evaluations: Sequence[Evaluation],
    pictures: Mapping[str, Callable[[Any], Tensor]],
    summarize: Callable[[History], list[str]],
    should_stop: Callable[[], bool] = signals.requested,
) -> RunResult:
    """Trains to the last step, from the latest checkpoint if there is one.

    Args:
      task: schedule, saving, reporting, and where to resume or initialize from.
      process: of this rank.
      state: before the first step; a checkpoint is copied into its tensors.
      initialize: loads initial weights into the state, and returns a message.
      batches: yields this rank's batches from a given step on, on its device.
      prepare: turns a batch into the inputs of a step, given the number of steps before it.
      take_step: takes a step, given the state, its inputs, and whether it is measured, as is the
        last step of each log window.
      evaluations: run in this order at their steps.
      pictures: by name, functions of a step's inputs that draw uint8 [3, height, width]; called
        on every rank.
      summarize: turns the history of scores into messages at the end.
      should_stop: called after every step on every rank. True on any of them saves a checkpoint
        and ends the run early, after the same step on all ranks.
    """
    path, warnings = _choose_start(task, process)
    start = resume.start(path, task.init_from, process, state, task.recipe(), initialize)
    state, history, recipe = start.state, start.history, start.recipe
    if path is not None:
        check_finite(task.finite_tensors(state), str(path), "resume_from an earlier checkpoint")
    if collectives.rank() == 0:
        check_room(task, process.workdir, state.nbytes, state.step)

    def record(step: int, problem: str) -> None:
        _record_bad_step(task, process, path, step, problem)

    is_pending = history[-1:] == [_pending(state.step)]
    # The scores in the checkpoint may be of other images or of another preprocessing.
    is_outdated = state.step == task.total_steps and start.is_reconfigured
    any_rank, is_stopped = collectives.AnyRank(process.device), False
    with (
        _monitor(task, process, state.step, record, is_pending or is_outdated) as monitor,
        signals.deferred(),
        ExitStack() as first_step,
    ):
        saver = _Saver(task, process, recipe, monitor)
        _introduce(monitor, process, start, warnings)
        if state.step == 0:
            initial = [item for item in evaluations if item.before_training]
            history += _evaluate(initial, monitor, state.step)
        elif is_pending:
            history[-1:] = _evaluate(_due(evaluations, state.step, task), monitor, state.step)
            saver.save(state, history)
        elif is_outdated:
            history += _evaluate(evaluations, monitor, state.step)
        if state.step < task.total_steps:
            first_step.enter_context(progress.status(_first_step_phrase(process)))
            first_step.enter_context(signals.interruptible())
        for batch, wait in time_batches(batches(state.step)):
            inputs = prepare(batch, state.step)
            if _is_multiple(state.step, task.reporting.picture_every):
                _draw(pictures, monitor, state.step, inputs)
            measured = monitor.reports_at(state.step + 1)
            state, metrics, measures = take_step(state, inputs, measured)
            first_step.close()
            monitor.step(state.step, metrics, wait, measures)
            due, is_last = _due(evaluations, state.step, task), state.step == task.total_steps
            is_stopped = any_rank(should_stop()) and (bool(due) or not is_last)
            pending = [_pending(state.step)] if due else []
            if due and not is_stopped:
                path = saver.save_if_old(state, history + pending) or path
                history, pending = history + _evaluate(due, monitor, state.step), []
            if is_stopped or is_last or state.step % task.saving.every == 0:
                path = saver.save(state, history + pending)
            if is_stopped or is_last:
                break
        scores = history[-1][1] if history else {}
        if not is_stopped:
            monitor.settings(recipe.settings, scores)
        for line in _closing_lines(task, process, state.step, is_stopped) + summarize(history):
            monitor.message(line)
    return RunResult(scores, path, is_stopped)


def _due(evaluations: Sequence[Evaluation], step: int, task: TrainingTask) -> list[Evaluation]:
    """Returns the evaluations of a step."""
    is_last = step == task.total_steps
    return [item for item in evaluations if is_last or _is_multiple(step, item.every)]


def _pending(step: int) -> tuple[int, Scores]:
    """Returns the entry of the history whose evaluation a resumed run has yet to do."""
    return step, {}


def _choose_start(task: TrainingTask, process: Process) -> tuple[Path | None, list[str]]:
    """Returns the checkpoint to resume, the same on all ranks, and warnings about others."""
    path, warnings = None, []
    if collectives.rank() == 0:
        path = task.starting_checkpoint(process.workdir)
        warnings = checkpoint.tidy(process.workdir, path)
    return collectives.broadcast(path), warnings


def check_room(task: TrainingTask, workdir: Path, size: int, step: int) -> None:
    """Checks that the disk has room for the checkpoints to come.

    Args:
      task: of the run.
      workdir: of the run.
      size: of a checkpoint in bytes.
      step: steps taken so far.

    Raises:
      UserError: they do not fit, or the folder cannot be created.
    """
    saving = task.saving
    to_come = [*range(0, task.total_steps, saving.every), task.total_steps]
    to_come = [later for later in to_come if later > step]
    checkpoint.check_room(workdir, size, to_come, saving.keep_last, saving.keep_every)


def time_batches(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yields each batch with the seconds spent waiting for it."""
    started = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - started
        started = time.monotonic()


def _record_bad_step(
    task: TrainingTask, process: Process, start: Path | None, step: int, problem: str
) -> None:
    name = task.training_source.name
    images = [(index, name(index)) for index in next(task.global_batches(step - 1))]
    record_bad_step(process.workdir, step, problem, seed=task.seed, images=images, start=start)


def _monitor(
    task: TrainingTask,
    process: Process,
    step: int,
    record: Callable[[int, str], None],
    repeats_evaluation: bool,
) -> Monitor:
    advice = task.divergence_advice(process.machine.precision.value)
    return Monitor(
        workdir=process.workdir,
        total_steps=max(task.total_steps, step),
        start_step=step,
        images_per_step=task.batch_size,
        steps_per_epoch=task.steps_per_epoch,
        log_every=task.reporting.log_every,
        bad_steps=BadSteps(task.schedule.bad_steps, advice, record),
        is_main=collectives.rank() == 0,
        references=task.references,
        alarms=task.alarms(),
        repeats_evaluation=repeats_evaluation,
    )


def _introduce(
    monitor: Monitor, process: Process, start: resume.Start, warnings: Sequence[str]
) -> None:
    monitor.text("config", start.state.step, f"```\n{process.config}\n```")
    if start.changes:
        monitor.text("changes", start.state.step, start.changes)
    warning = machine.precision_warning(process.machine.precision, process.device)
    for line in (*warnings, start.message, start.changes, warning and f"warning: {warning}"):
        if line:
            monitor.message(line)


def _first_step_phrase(process: Process) -> str:
    if process.machine.compile.value:
        return "compiling the first step (a minute or more; cached for the next start)"
    return "taking the first step"


def _is_multiple(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _draw(
    pictures: Mapping[str, Callable[[Any], Tensor]], monitor: Monitor, step: int, inputs: Any
) -> None:
    with monitor.pause():
        for name, draw in pictures.items():
            monitor.image(name, step, draw(inputs))


def _evaluate(evaluations: Sequence[Evaluation], monitor: Monitor, step: int) -> History:
    """Runs evaluations and reports their scores; returns (step, scores), if there are any."""
    scores: Scores = {}
    for evaluation in evaluations:
        status = progress.status(f"evaluating at step {step}")
        with signals.interruptible(), monitor.pause(), status:
            scores |= evaluation.evaluate(monitor, step)
    if not scores:
        return []
    monitor.numbers(step, scores)
    described = [
        describe_number(name, value, scores.get(f"{name}_chance"))
        for name, value in scores.items()
        if not name.endswith("_chance")
    ]
    monitor.message(f"step {step}: {', '.join(described)}")
    return [(step, scores)]


class _Saver:
    """Saves checkpoints on the main rank; every rank must call its methods."""

    def __init__(
        self, task: TrainingTask, process: Process, recipe: resume.Recipe, monitor: Monitor
    ) -> None:
        self._task = task
        self._process = process
        self._recipe = recipe
        self._monitor = monitor
        self._saved_at = -math.inf

    def save(self, state: TrainState, history: History) -> Path:
        """Saves a checkpoint; returns its path."""
        saving, workdir = self._task.saving, self._process.workdir
        # Never replace a good checkpoint with a diverged one.
        self._monitor.means(state.step)
        advice = self._task.divergence_advice(self._process.machine.precision.value)
        tensors = self._task.finite_tensors(state)
        check_finite(tensors, f"the state after step {state.step}", advice)
        if collectives.rank() == 0:
            with self._monitor.pause():
                # A resumed run does not repeat the records of steps before its checkpoint.
                self._monitor.flush()
                checkpoint.save(
                    workdir,
                    resume.to_checkpoint(state, self._process, self._recipe, history),
                    state.step,
                    saving.keep_last,
                    saving.keep_every,
                )
        self._saved_at = time.monotonic()
        return checkpoint.checkpoint_path(workdir, state.step)

    def save_if_old(self, state: TrainState, history: History) -> Path | None:
        """Saves a checkpoint unless this process has done so in the last seconds."""
        if collectives.broadcast(time.monotonic() - self._saved_at > _AT_RISK_SECONDS):
            return self.save(state, history)
        return None


def _closing_lines(task: TrainingTask, process: Process, step: int, is_stopped: bool) -> list[str]:
    if is_stopped:
        return [
            f"stopped at step {step} of {task.total_steps}; the same command resumes this run "
            f"from {process.workdir}"
        ]
    return [f"done: {step} steps, everything is in {process.workdir}"]
