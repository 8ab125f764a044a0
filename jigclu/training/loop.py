"""The training loop and its result."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from jigclu.system import collectives, machine, progress
from jigclu.training import checkpoint, resume
from jigclu.training.alarms import Alarms
from jigclu.training.bad_step_records import record_bad_step
from jigclu.training.finite import check_finite
from jigclu.training.monitor import BadSteps, Monitor
from jigclu.training.process import Process
from jigclu.training.resume import History
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult
from jigclu.training.task import TrainingTask

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
    """

    scores: Scores
    checkpoint: Path | None


def never() -> bool:
    """Returns False: the run continues to its last step."""
    return False


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
    draw: Callable[[Any], Tensor] | None,
    summarize: Callable[[History], list[str]],
    should_stop: Callable[[], bool] = never,
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
      draw: draws inputs as uint8 [3, height, width]; None for no pictures.
      summarize: turns the history of scores into messages at the end.
      should_stop: called after every step, and returns the same on every rank. True saves a
        checkpoint and ends the run early.
    """
    path, warnings = _choose_start(task, process)
    recipe = task.recipe()
    start = resume.start(path, task.init_from, process, state, recipe, initialize)
    state, history = start.state, start.history
    if path is not None:
        check_finite(task.finite_tensors(state), str(path), "resume_from an earlier checkpoint")
    _check_room(task, process, state)

    def record(step: int, problem: str) -> None:
        _record_bad_step(task, process, path, step, problem)

    with _monitor(task, process, state.step, record) as monitor, ExitStack() as first_step:
        _introduce(monitor, process, start, warnings)
        if state.step == 0:
            initial = [item for item in evaluations if item.before_training]
            history += _evaluate(initial, monitor, state.step)
        if state.step < task.total_steps:
            first_step.enter_context(progress.status(_first_step_phrase(process)))
        for batch, wait in time_batches(batches(state.step)):
            inputs = prepare(batch, state.step)
            if draw is not None and _is_multiple(state.step, task.reporting.picture_every):
                monitor.image("inputs", state.step, draw(inputs))
            measured = monitor.reports_at(state.step + 1)
            state, metrics, measures = take_step(state, inputs, measured)
            first_step.close()
            monitor.step(state.step, metrics, wait, measures)
            is_last = state.step == task.total_steps
            due = [item for item in evaluations if is_last or _is_multiple(state.step, item.every)]
            history += _evaluate(due, monitor, state.step)
            stops = is_last or should_stop()
            if stops or state.step % task.saving.every == 0:
                path = _save(task, process, state, recipe, history, monitor)
            if stops:
                break
        for line in _closing_lines(task, process, state.step) + summarize(history):
            monitor.message(line)
    return RunResult(history[-1][1] if history else {}, path)


def _choose_start(task: TrainingTask, process: Process) -> tuple[Path | None, list[str]]:
    """Returns the checkpoint to resume, the same on all ranks, and warnings about others."""
    path, warnings = None, []
    if collectives.rank() == 0:
        path = task.starting_checkpoint(process.workdir)
        warnings = checkpoint.tidy(process.workdir, path)
    return collectives.broadcast(path), warnings


def _check_room(task: TrainingTask, process: Process, state: TrainState) -> None:
    """Raises UserError unless the disk has room for the checkpoints to come."""
    saving = task.saving
    to_come = [*range(0, task.total_steps, saving.every), task.total_steps]
    to_come = [step for step in to_come if step > state.step]
    if collectives.rank() == 0:
        checkpoint.check_room(
            process.workdir, state.nbytes, to_come, saving.keep_last, saving.keep_every
        )


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
    images = [(index, name(index)) for index in task.global_batch(step)]
    record_bad_step(process.workdir, step, problem, seed=task.seed, images=images, start=start)


def _monitor(
    task: TrainingTask, process: Process, step: int, record: Callable[[int, str], None]
) -> Monitor:
    advice = task.divergence_advice(process.machine.precision.value)
    return Monitor(
        workdir=process.workdir,
        total_steps=max(task.total_steps, step),
        start_step=step,
        images_per_step=task.batch_size,
        log_every=task.reporting.log_every,
        bad_steps=BadSteps(task.schedule.bad_steps, advice, record),
        is_main=collectives.rank() == 0,
        references=task.references,
        alarms=Alarms(task.total_steps) if task.raises_alarms else None,
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


def _evaluate(evaluations: Sequence[Evaluation], monitor: Monitor, step: int) -> History:
    """Runs evaluations and reports their scores; returns (step, scores), if there are any."""
    scores: Scores = {}
    for evaluation in evaluations:
        with monitor.pause(), progress.status(f"evaluating at step {step}"):
            scores |= evaluation.evaluate(monitor, step)
    if not scores:
        return []
    for name, value in scores.items():
        monitor.scalar(name, step, value)
    described = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    monitor.message(f"step {step}: {described}")
    return [(step, scores)]


def _save(
    task: TrainingTask,
    process: Process,
    state: TrainState,
    recipe: resume.Recipe,
    history: History,
    monitor: Monitor,
) -> Path:
    """Saves a checkpoint on the main rank; returns its path."""
    # Never replace a good checkpoint with a diverged one.
    monitor.means(state.step)
    advice = task.divergence_advice(process.machine.precision.value)
    check_finite(task.finite_tensors(state), f"the state after step {state.step}", advice)
    if collectives.rank() == 0:
        with monitor.pause():
            checkpoint.save(
                process.workdir,
                resume.to_checkpoint(state, process, recipe, history),
                state.step,
                task.saving.keep_last,
                task.saving.keep_every,
            )
    return checkpoint.checkpoint_path(process.workdir, state.step)


def _closing_lines(task: TrainingTask, process: Process, step: int) -> list[str]:
    if step < task.total_steps:
        return [
            f"stopped at step {step} of {task.total_steps}; the same command resumes this run "
            f"from {process.workdir}"
        ]
    return [f"done: {step} steps, everything is in {process.workdir}"]
