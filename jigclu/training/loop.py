"""What every training task shares: its fields, and the loop that resumes, steps, scores, saves."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from jigclu.data.sampler import GlobalBatchSampler, steps_per_epoch
from jigclu.data.sources import Source
from jigclu.models.weights import check_encoder
from jigclu.ops import schedules
from jigclu.system import collectives, machine, progress, tensor_files
from jigclu.system.device import check_compiler, launched_processes, local_device, process_group
from jigclu.system.errors import UserError, check
from jigclu.system.machine import Auto, Machine
from jigclu.training import checkpoint, resume
from jigclu.training.monitor import Monitor
from jigclu.training.state import TrainState

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class TrainingTask(ABC):
    """The fields of every run that trains; what a field means stands in gin/base.

    Units: batch_size in images of the global batch, epochs and warmup_epochs in
    epochs; every `_every` in steps, save evaluate_every, in epochs (0: never).
    """

    seed: int
    source: Source
    batch_size: int
    epochs: int
    stop_after_steps: int | None
    encoder: str
    small_stem: bool
    warmup_epochs: float
    decay: schedules.Decay
    per_epoch: bool
    device: str
    precision: str
    compile: bool | Auto
    channels_last: bool | Auto
    workers: int | Auto
    prefetch: int
    init_from: str | None
    resume_from: str | None
    log_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int
    evaluate_every: int

    @property
    def training_source(self) -> Source:
        """What is learned from: the source, or a part of it."""
        return self.source

    @property
    def compilable(self) -> bool:
        """Whether there is anything for torch.compile to do."""
        return True

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the incomplete last batch is dropped."""
        return steps_per_epoch(len(self.training_source), self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.stop_after_steps is None else min(steps, self.stop_after_steps)

    def schedule_at(self, step: int) -> float:
        """Returns the factor of the learning rate at a step, from 0."""
        return schedules.learning_rate_at(
            step,
            self.steps_per_epoch,
            learning_rate=1.0,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            per_epoch=self.per_epoch,
            decay=self.decay,
        )

    def sampler(self, start_step: int) -> GlobalBatchSampler:
        """Returns the batches of this rank from a step on."""
        return GlobalBatchSampler(
            length=len(self.training_source),
            batch_size=self.batch_size,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            seed=self.seed,
            start_step=start_step,
            total_steps=self.total_steps,
        )

    def check(self, workdir: Path, config: str) -> None:
        """Finds mistakes before anything is written or computed.

        Args:
          workdir: of the run; it may hold an interrupted run of the same configuration.
          config: all effective bindings, one a line.

        Raises:
          UserError: a value out of range, a file that is not there, or a workdir
            of another configuration.
        """
        if self.init_from is not None and self.resume_from is not None:
            raise UserError(
                f"init_from is {self.init_from!r} and resume_from {self.resume_from!r}; "
                "give one: resuming brings its own weights"
            )
        self.check_values()
        local_device(self.device)
        if self.compilable and self.compile is True:
            check_compiler()
        if self.resume_from is not None:
            tensor_files.check_exists(Path(self.resume_from))
        found = self.starting_checkpoint(workdir)
        if found is not None:
            contents = checkpoint.load(found, "cpu")
            resume.check_same_run(contents, config, found)
            resume.check_same_data(
                contents["data"], self.training_source.fingerprint(deep=False), found
            )

    def check_values(self) -> None:
        """Raises UserError for a field out of range, or weights that do not fit.

        Subclasses check their own fields, too.
        """
        schedules.check_schedule(self.epochs, self.warmup_epochs)
        machine.check_precision(self.precision)
        if self.stop_after_steps is not None and self.stop_after_steps < 1:
            raise UserError(
                f"stop_after_steps is {self.stop_after_steps}; it must be 1 or more, or None"
            )
        check_least(
            self,
            {"log_every": 1, "checkpoint_every": 1, "keep_last": 1, "prefetch": 1, "batch_size": 2}
            | {"keep_every": 0, "evaluate_every": 0, "seed": 0},
        )
        machine.check_workers(self.workers)
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}; it must be below 2**63")
        check_encoder(self.init_from, self.encoder, self.small_stem)
        # Builds nothing: asks for what the sampler refuses, before the ranks have met.
        GlobalBatchSampler(
            length=len(self.training_source),
            batch_size=self.batch_size,
            rank=0,
            world_size=launched_processes(),
            seed=self.seed,
            start_step=0,
            total_steps=0,
        )

    def starting_checkpoint(self, workdir: Path) -> Path | None:
        """Returns where to go on from: the workdir's own checkpoint before a named one."""
        named = None if self.resume_from is None else Path(self.resume_from)
        return checkpoint.latest(workdir) or named

    def choose_machine(self, workdir: Path | None) -> Machine:
        """Chooses what depends on the machine; the same precision on every rank.

        Args:
          workdir: of the run, which keeps the precision in which it started; None: no run.
        """
        device = local_device(self.device)
        path = None if workdir is None else self.starting_checkpoint(workdir)
        started = None if path is None else resume.started_precision(checkpoint.peek(path))
        precision = machine.choose_precision(self.precision, device, started)
        return machine.choose_machine(
            device,
            precision=collectives.broadcast(precision),
            use_compile=self.compile,
            channels_last=self.channels_last,
            workers=self.workers,
            steps=self.total_steps,
            compilable=self.compilable,
        )

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, several lines: devices, steps, samples, and its own.

        Args:
          workdir: of the run, which may hold a checkpoint to resume.
        """
        return "\n".join(
            [
                f"devices: {launched_processes()} x {local_device(self.device).type}",
                f"data: {len(self.training_source):,} images, {len(self.source.classes)} classes",
                f"steps: {self.total_steps:,}, {self.steps_per_epoch:,} an epoch "
                f"of {self.epochs} epochs",
                f"samples: {self.total_steps * self.batch_size:,} images, {self.batch_size} a step",
                *self.plan_details(),
                self.choose_machine(workdir).summary(),
            ]
        )

    @abstractmethod
    def plan_details(self) -> list[str]:
        """Returns the lines of the plan that are of this kind of task alone."""

    def run(self, workdir: Path, config: str) -> dict[str, float]:
        """Trains from the latest checkpoint of the workdir, or from the start, to the end.

        Args: as `check`, which must have passed.

        Returns:
          The last scores, by name.

        Raises:
          UserError: what only training can find, such as a loss that is not finite.
        """
        device = local_device(self.device)
        with process_group(device):
            with progress.status("building the network"):
                run = self.start(workdir, config, device)
            run.run()
            return run.scores[-1][1] if run.scores else {}

    def start(self, workdir: Path, config: str, device: torch.device) -> "TrainingRun":
        """Returns the run of this process, set up for its machine.

        Args: as `check`, and the device of this process.
        """
        chosen = self.choose_machine(workdir)
        chosen.apply()
        return self.begin(RunContext(workdir, config, device, chosen))

    @abstractmethod
    def begin(self, context: "RunContext") -> "TrainingRun":
        """Returns the run of this process, in the state before its first step."""


def check_least(task: object, least: Mapping[str, int]) -> None:
    """Raises UserError for a field below the least value that it may have."""
    for name, bound in least.items():
        value = getattr(task, name)
        check(value >= bound, name, value, f"{bound} or more")


class RunContext(NamedTuple):
    """Where and how a process runs a task.

    workdir: of the run.
    config: all effective bindings, one per line.
    device: of this process.
    machine: the settings chosen for it, and why.
    """

    workdir: Path
    config: str
    device: torch.device
    machine: Machine


class TrainingRun(ABC):
    """One process of a run: what lives from the first step to the last."""

    # Whether there is something to score before the first step.
    scores_untrained = False

    def __init__(
        self,
        task: TrainingTask,
        context: RunContext,
        state: TrainState,
    ) -> None:
        """Takes up a checkpoint, or initial weights, where there are any.

        Args:
          task: that passed its check.
          context: where and how it runs.
          state: before the first step; its tensors are filled in place.
        """
        self.context = context
        self.device = context.device
        self.state = state
        # Steps, and what was scored after them, by name.
        self.scores: list[tuple[int, dict[str, float]]] = []
        self._task = task
        self._data = task.training_source.fingerprint(deep=False)
        news = self._restore()
        self.monitor = Monitor(
            workdir=context.workdir,
            total_steps=max(task.total_steps, self.state.step),
            start_step=self.state.step,
            images_per_step=task.batch_size,
            log_every=task.log_every,
            is_main=collectives.rank() == 0,
        )
        if news:
            self.monitor.message(news)
        warning = machine.precision_warning(context.machine.precision, context.device)
        if warning is not None:
            self.monitor.message(f"warning: {warning}")

    @abstractmethod
    def begin_with(self, path: Path) -> str:
        """Takes the initial weights of a file; returns what to tell of them."""

    @abstractmethod
    def inputs(self) -> Iterator[tuple[Any, float]]:
        """Yields the inputs of every step left, and the seconds waited for them."""

    @abstractmethod
    def take_step(self, inputs: Any) -> dict[str, Tensor]:
        """Moves the state on by one step; returns metrics, scalars [] on the device."""

    @abstractmethod
    def score(self) -> dict[str, float]:
        """Returns how good the state is, by name; nothing where there is nothing to score."""

    @abstractmethod
    def conclude(self) -> None:
        """Tells what came of it, after the last step."""

    def run(self) -> None:
        """Takes all steps that are left."""
        task = self._task
        with self.monitor, ExitStack() as first_step:
            self.monitor.text("config", self.state.step, f"```\n{self.context.config}\n```")
            if self.state.step == 0 and self.scores_untrained:
                self._score()
            if self.state.step < task.total_steps:
                phrase = _first_step_phrase(self.context.machine.compile.value)
                first_step.enter_context(progress.status(phrase))
            for inputs, wait in self.inputs():
                metrics = self.take_step(inputs)
                first_step.close()
                self.monitor.step(self.state.step, metrics, wait)
                self._after_step()
            self.monitor.message(
                f"done: {self.state.step} steps, everything is in {self.context.workdir}"
            )
            self.conclude()

    def _restore(self) -> str:
        path = self._task.starting_checkpoint(self.context.workdir)
        if path is not None:
            contents = checkpoint.load(path, self.device)
            precision = self.context.machine.precision.value
            self.state = resume.restore(self.state, contents, path, precision)
            self.scores = [(step, dict(score)) for step, score in contents["scores"]]
            return f"resumed from {path} at step {self.state.step}"
        if self._task.init_from is not None:
            return self.begin_with(Path(self._task.init_from))
        return ""

    def _after_step(self) -> None:
        task, step = self._task, self.state.step
        ended = step == task.total_steps
        epoch, within = divmod(step, task.steps_per_epoch)
        if ended or (task.evaluate_every and not within and epoch % task.evaluate_every == 0):
            self._score()
        if ended or step % task.checkpoint_every == 0:
            self._save()

    def _score(self) -> None:
        with self.monitor.pause(), progress.status(f"scoring at step {self.state.step}"):
            score = self.score()
        if not score:
            return
        self.scores.append((self.state.step, score))
        for name, value in score.items():
            self.monitor.scalar(name, self.state.step, value)
        told = ", ".join(f"{name} {value:.4g}" for name, value in score.items())
        self.monitor.message(f"step {self.state.step}: {told}")

    def _save(self) -> None:
        # What has diverged must not take the place of what had not.
        self.monitor.means(self.state.step)
        if collectives.rank() != 0:
            return
        task = self._task
        with self.monitor.pause():
            checkpoint.save(
                self.context.workdir,
                resume.to_checkpoint(
                    self.state,
                    self.context.config,
                    self._data,
                    self.scores,
                    self.context.machine.to_checkpoint(),
                ),
                self.state.step,
                task.keep_last,
                task.keep_every,
            )


def _first_step_phrase(compiles: bool) -> str:
    if compiles:
        return "compiling the first step (a minute or more; cached for the next start)"
    return "taking the first step"


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yields every batch and the seconds that it had to be waited for."""
    began = time.monotonic()
    for batch in batches:
        yield batch, time.monotonic() - began
        began = time.monotonic()
