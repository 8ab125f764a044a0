"""Settings of all training tasks, with checks before anything runs."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from jigclu.data.sampler import GlobalBatchSampler, check_batch_size, steps_per_epoch
from jigclu.data.sources import Source
from jigclu.system import collectives, machine, seeds
from jigclu.system.device import check_compiler, launched_processes, local_device, process_group
from jigclu.system.errors import UserError, check, naming
from jigclu.system.files import expand_home
from jigclu.system.machine import Machine
from jigclu.system.on_resume import ByContent, Free, Logged, SameWeights
from jigclu.system.tensor_files import check_exists
from jigclu.training import checkpoint, initial_weights, resume
from jigclu.training.alarms import Alarms
from jigclu.training.encoder_task import EncoderTask
from jigclu.training.process import Process
from jigclu.training.settings import (
    Compute,
    Loading,
    Reporting,
    Saving,
    Schedule,
    learning_settings,
    resume_rules,
)
from jigclu.training.state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainingTask(EncoderTask):
    """Settings of all training tasks; gin/base describes each of them.

    Attributes:
      seed: of all random numbers.
      title: of the task, in messages.
      source: training images.
      batch_size: images of the global batch.
      resume_from: checkpoint to resume if the workdir has none, or an earlier one of the workdir,
        to which the run goes back once; or None.
      schedule: length of the run, and its learning-rate schedule.
      compute: device and arithmetic.
      loading: worker processes that read images.
      saving: checkpoints.
      reporting: log lines and pictures.
    """

    title: ClassVar[str]

    init_from: SameWeights[str | None]
    seed: int
    source: ByContent[Source]
    batch_size: int
    resume_from: Logged[str | None]
    schedule: Schedule
    compute: Free[Compute]
    loading: Free[Loading]
    saving: Free[Saving]
    reporting: Free[Reporting]

    def __post_init__(self) -> None:
        seeds.check_seed(self.seed)
        check(self.batch_size >= 2, "batch_size", self.batch_size, "2 or more images")
        if self.init_from is not None and self.resume_from is not None:
            raise UserError(
                f"init_from is {self.init_from!r}, but resume_from is {self.resume_from!r}: "
                "bind only one of them, since a resumed checkpoint contains its own weights"
            )

    @property
    def training_source(self) -> Source:
        """Training images: all of the source or a part of it."""
        return self.source

    @property
    def can_compile(self) -> bool:
        """Whether the task has anything for torch.compile to compile."""
        return True

    @property
    def label_description(self) -> str:
        """The labels of the training images, for the plan."""
        return f"{len(self.source.classes)} classes" if self.source.classes else "no labels"

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the incomplete last batch is dropped."""
        return steps_per_epoch(len(self.training_source), self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.schedule.total_steps(self.steps_per_epoch)

    def alarms(self) -> Alarms | None:
        """Returns what watches the measures of a new run, or None."""
        return None

    @property
    def references(self) -> dict[str, float]:
        """Values with which those of metrics are compared: `<name>_chance`, `<name>_floor`."""
        return {}

    def divergence_advice(self, precision: str) -> str:
        """Returns what to do if the loss is not finite in a precision."""
        resumes = "the same command resumes from the last checkpoint, if there is one"
        if precision == "float32":
            return f"lower learning_rate, with which {resumes}"
        return "lower learning_rate, or bind compute.precision = 'float32'; with either, " + resumes

    def finite_tensors(self, state: TrainState) -> dict[str, Tensor]:
        """Returns the tensors that must be finite in a checkpoint."""
        return state.tensors

    @property
    def memory_advice(self) -> str:
        """What to do if the device runs out of memory."""
        return "use a smaller batch_size, and another --workdir if this one has checkpoints"

    def epochs_to_steps(self, epochs: int) -> int:
        """Returns the steps of a number of epochs."""
        return epochs * self.steps_per_epoch

    def learning_rate_factor(self, step: int) -> float:
        """Returns the factor of the learning rate at a step, counted from 0."""
        return self.schedule.factor(step, self.steps_per_epoch)

    def sampler(self, start_step: int) -> GlobalBatchSampler:
        """Returns the batches of this rank from start_step on."""
        return GlobalBatchSampler(
            length=len(self.training_source),
            batch_size=self.batch_size,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            seed=self.seed,
            start_step=start_step,
            total_steps=self.total_steps,
        )

    def check(self, workdir: Path) -> None:
        """Checks files, devices and combinations of settings before anything is written.

        Args:
          workdir: of the run; it may hold an interrupted run with the same settings.

        Raises:
          UserError: settings do not fit together, a file or device is missing, or the workdir
            holds a run with other settings.
        """
        check_batch_size(self.batch_size, len(self.training_source), launched_processes())
        local_device(self.compute.device)
        if self.can_compile and self.compute.compile is True:
            check_compiler()
        found = self.starting_checkpoint(workdir)
        if found is None:
            self.check_encoder()
            return
        if checkpoint.latest(workdir) is None:
            with naming("resume_from"):
                check_exists(found)
        with torch.device("meta"):
            self.new_encoder()
        contents = checkpoint.peek(found)
        is_finished = self.total_steps <= contents["step"]
        new_run = self._new_run(found, workdir)
        resume.check_same_run(contents, self.recipe(), found, new_run, is_finished)
        if self.total_steps < contents["step"]:
            stop = self.schedule.stop_after_steps
            if stop is None:
                raise UserError(
                    f"{found} has {contents['step']} steps, more than the {self.total_steps} of "
                    "the whole run: it is not from this run; use another --workdir"
                )
            raise UserError(
                f"stop_after_steps is {stop}, but {found} already has {contents['step']} steps: "
                "use a larger number, or None to train to the end"
            )

    def global_batches(self, start_step: int) -> Iterator[list[int]]:
        """Yields the indices of the training images of all ranks, for each step from 0."""
        sampler = GlobalBatchSampler(
            length=len(self.training_source),
            batch_size=self.batch_size,
            rank=0,
            world_size=1,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.total_steps,
        )
        return ([index for _, index in batch] for batch in sampler)

    def recipe(self) -> resume.Recipe:
        """Returns the settings and images that a resumed run must share with its checkpoint."""
        images = self.training_source.fingerprint(deep=False)
        weights = initial_weights.fingerprint(self.init_from)
        settings, rules = learning_settings(self), resume_rules(self)
        return resume.Recipe(self.title, settings, rules, images, weights)

    def _new_run(self, path: Path, workdir: Path) -> str:
        """Returns the flags with which a new run starts from the encoder of a checkpoint."""
        others = (Path(f"{workdir}_{number}") for number in itertools.count(2))
        other = next(folder for folder in others if not folder.exists())
        bindings = [f"init_from = '{path}'"]
        if self.resume_from is not None:
            bindings.append("resume_from = None")
        flags = [f'--gin_bindings="{binding}"' for binding in bindings]
        return " ".join([f'--workdir="{other}"', *flags])

    def starting_checkpoint(self, workdir: Path) -> Path | None:
        """Returns the checkpoint to resume: the latest of the workdir, or `resume_from`."""
        if self.resume_from is None:
            return checkpoint.latest(workdir)
        named = Path(expand_home(self.resume_from))
        if not checkpoint.is_own(workdir, named):
            return checkpoint.latest(workdir) or named
        # After the run went back to it, it resumes from the checkpoints that it has written since.
        latest = checkpoint.latest(workdir)
        assert latest is not None
        recorded = checkpoint.peek(latest)["settings"].get("resume_from")
        return latest if recorded == repr(self.resume_from) else named

    def choose_machine(self, workdir: Path | None) -> Machine:
        """Chooses the settings that depend on the machine, with one precision on all ranks.

        Args:
          workdir: of the run, whose precision is kept when it resumes; None without a run.
        """
        device = local_device(self.compute.device)
        path = None if workdir is None else self.starting_checkpoint(workdir)
        started = None if path is None else resume.started_precision(checkpoint.peek(path))
        precision = machine.choose_precision(self.compute.precision, device, started)
        return machine.choose_machine(
            device,
            precision=collectives.broadcast(precision),
            use_compile=self.compute.compile,
            channels_last=self.compute.channels_last,
            workers=self.loading.workers,
            steps=self.total_steps,
            compilable=self.can_compile,
        )

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines.

        Args:
          workdir: of the run, which may hold a checkpoint to resume.
        """
        return "\n".join([*self.summary(), self.choose_machine(workdir).summary()])

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        whole = self.schedule.whole_steps(self.steps_per_epoch)
        stops = f" of {whole:,}" if self.total_steps < whole else ""
        return [
            f"devices: {launched_processes()} x {local_device(self.compute.device).type}",
            f"data: {len(self.training_source):,} images, {self.label_description}",
            f"steps: {self.total_steps:,}{stops}, {self.steps_per_epoch:,} per epoch, "
            f"{self.schedule.epochs:,g} epochs",
            f"samples: {self.total_steps * self.batch_size:,} images, {self.batch_size} per step",
        ]

    @contextmanager
    def process(self, workdir: Path, config: str) -> Iterator[Process]:
        """Joins the process group and applies the settings chosen for the machine.

        Args:
          workdir: of the run.
          config: all effective bindings, one per line.
        """
        device = local_device(self.compute.device)
        with process_group(device, self.compute.rank_timeout):
            chosen = self.choose_machine(workdir)
            chosen.apply()
            yield Process(workdir, config, device, chosen)
