"""Pre-training: the loop around the step, told everything by its fields."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from jigclu import augment, checkpoint, collectives, jigsaw, resume, schedules
from jigclu.data.loader import Batch, patch_loader
from jigclu.data.patches import PatchDataset
from jigclu.data.sampler import GlobalBatchSampler, steps_per_epoch
from jigclu.data.sources import Source
from jigclu.device import check_compiler, launched_processes, local_device, process_group
from jigclu.encoder import create_encoder
from jigclu.errors import UserError
from jigclu.knn import KnnEvaluation, Score
from jigclu.model import JigClu
from jigclu.monitor import Monitor
from jigclu.pictures import montage_picture
from jigclu.steps import (
    PRECISIONS,
    Objective,
    PretrainStep,
    StepInputs,
    check_objective,
    check_precision,
)
from jigclu.update import LossScaling, Optimizer


@dataclass(frozen=True, kw_only=True)
class PretrainTask:
    """Everything that defines a run of pre-training; what a field means stands in gin/base.

    Units: batch_size in images of the global batch, epochs and warmup_epochs in
    epochs, patch_size in pixels; every `_every` in steps, save evaluate_every, in epochs
    (0: never).
    """

    seed: int
    source: Source
    batch_size: int
    epochs: int
    stop_after_steps: int | None
    grid: int
    cross_ratio: float
    patch_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    augmentation: augment.AugmentationSettings
    encoder: str
    small_stem: bool
    embedding_channels: int
    temperature: float
    base_temperature: float
    clustering_weight: float
    location_weight: float
    optimizer: Optimizer
    learning_rate: float
    warmup_epochs: float
    decay: schedules.Decay
    per_epoch: bool
    loss_scaling: LossScaling
    device: str
    precision: str
    compile: bool
    channels_last: bool
    workers: int
    prefetch: int
    init_from: str | None
    resume_from: str | None
    log_every: int
    picture_every: int
    checkpoint_every: int
    keep_last: int
    keep_every: int
    evaluation: KnnEvaluation | None
    evaluate_every: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the incomplete last batch is dropped."""
        return steps_per_epoch(len(self.source), self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.stop_after_steps is None else min(steps, self.stop_after_steps)

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, from 0."""
        return schedules.learning_rate_at(
            step,
            self.steps_per_epoch,
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            per_epoch=self.per_epoch,
            decay=self.decay,
        )

    def objective(self) -> Objective:
        """Returns what a step minimises."""
        return Objective(
            augmentation=self.augmentation,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            clustering_weight=self.clustering_weight,
            location_weight=self.location_weight,
        )

    def model(self) -> JigClu:
        """Builds the network with initial weights of the seed: the same on every rank."""
        torch.manual_seed(self.seed)
        encoder = create_encoder(self.encoder, self.small_stem)
        return JigClu(encoder, self.grid, self.embedding_channels)

    def dataset(self) -> PatchDataset:
        """Returns the images of the source, cut into patches."""
        return PatchDataset(
            source=self.source,
            seed=self.seed,
            grid=self.grid,
            cross_ratio=self.cross_ratio,
            patch_size=self.patch_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
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
        schedules.check_schedule(self.learning_rate, self.epochs, self.warmup_epochs)
        augment.check_augmentation(self.augmentation)
        check_objective(self.objective())
        check_precision(self.precision)
        self.dataset()
        _check_map(self)
        _check_counts(self)
        local_device(self.device)
        if self.compile:
            check_compiler()
        if self.evaluation is not None:
            self.evaluation.check()
        if self.init_from is not None and self.resume_from is not None:
            raise UserError(
                f"init_from is {self.init_from!r} and resume_from {self.resume_from!r}; "
                "give one: resuming brings its own weights"
            )
        for path in filter(None, (self.init_from, self.resume_from)):
            checkpoint.require(Path(path))
        found = self.starting_checkpoint(workdir)
        if found is not None:
            resume.check_same_run(checkpoint.load(found, "cpu")["config"], config, found)

    def starting_checkpoint(self, workdir: Path) -> Path | None:
        """Returns where to go on from: the workdir's own checkpoint before a named one."""
        named = None if self.resume_from is None else Path(self.resume_from)
        return checkpoint.latest(workdir) or named

    def plan(self) -> str:
        """Returns what a run would do, several lines: devices, steps, samples, memory."""
        with torch.device("meta"):
            network = self.model()
        parameters = _megabytes(network.parameters())
        buffers = _megabytes(network.buffers())
        ranks = launched_processes()
        side = self.grid * self.patch_size
        return "\n".join(
            [
                f"devices: {ranks} x {local_device(self.device).type}",
                f"data: {len(self.source):,} images, {len(self.source.classes)} classes",
                f"steps: {self.total_steps:,}, {self.steps_per_epoch:,} an epoch "
                f"of {self.epochs} epochs",
                f"samples: {self.total_steps * self.batch_size:,} images, "
                f"{self.batch_size} a step, "
                f"{self.batch_size // ranks} montages of {side}x{side} pixels a device",
                f"state: {2 * parameters + buffers:.1f} MB a device (parameters {parameters:.1f}, "
                f"momentum {parameters:.1f}, buffers {buffers:.1f}), "
                f"and {parameters:.1f} MB of gradients",
            ]
        )

    def run(self, workdir: Path, config: str) -> None:
        """Trains from the latest checkpoint of the workdir, or from the start, to the end.

        Args: as `check`, which must have passed.

        Raises:
          UserError: what only training can find, such as a loss that is not finite.
        """
        device = local_device(self.device)
        with process_group(device):
            _Run(self, workdir, config, device).to_the_end()


class _Run:
    """One process of a run: what lives from the first step to the last."""

    def __init__(self, task: PretrainTask, workdir: Path, config: str, device: torch.device):
        self.task = task
        self.workdir = workdir
        self.config = config
        self.device = device
        self.is_main = collectives.rank() == 0
        self.step = PretrainStep(
            task.model(),
            task.objective(),
            task.optimizer,
            task.loss_scaling,
            task.precision,
            task.channels_last,
            task.compile,
            device,
        )
        self.state = self.step.initial_state()
        self.scores: list[tuple[int, float, float]] = []  # step, accuracy, chance
        self.unreadable = 0
        self.chance = torch.tensor(1 / task.grid**2, device=device)
        news = self._restore()
        self.monitor = Monitor(
            workdir=workdir,
            total_steps=max(task.total_steps, self.state.step),
            start_step=self.state.step,
            images_per_step=task.batch_size,
            log_every=task.log_every,
            is_main=self.is_main,
        )
        if news:
            self.monitor.message(news)

    def _restore(self) -> str:
        """Takes up a checkpoint or initial weights, if there are any; returns what to tell."""
        task = self.task
        path = task.starting_checkpoint(self.workdir)
        if path is not None:
            contents = checkpoint.load(path, self.device)
            self.state = resume.fill(self.state, contents, path)
            self.scores = [tuple(score) for score in contents["scores"]]
            return f"resumed from {path} at step {self.state.step}"
        if task.init_from is not None:
            expected = {**self.state.parameters, **self.state.buffers}
            weights, report = checkpoint.load_weights(
                checkpoint.read_weights(Path(task.init_from)), expected
            )
            resume.copy(expected, weights)
            return f"initial weights of {task.init_from}: {report.summary()}"
        return ""

    def to_the_end(self) -> None:
        task = self.task
        with self.monitor:
            self.monitor.text("config", self.state.step, f"```\n{self.config}\n```")
            if self.state.step == 0:
                self._evaluate()
            if task.compile and self.state.step < task.total_steps:
                self.monitor.message("compiling the first step: this takes a minute or more")
            for inputs, wait in self._inputs():
                self._show(inputs)
                rate = task.learning_rate_at(self.state.step)
                self.state, metrics = self.step(self.state, inputs, rate)
                metrics["location_accuracy_chance"] = self.chance
                self.monitor.step(self.state.step, metrics, wait)
                self._after_step()
            self._conclude()

    def _show(self, inputs: StepInputs) -> None:
        task, step = self.task, self.state.step
        if self.is_main and task.picture_every and step % task.picture_every == 0:
            picture = montage_picture(inputs, task.augmentation, task.grid)
            self.monitor.image("montages", step, picture)

    def _inputs(self) -> Iterator[tuple[StepInputs, float]]:
        """Yields the inputs of every step left, and the seconds waited for them."""
        task = self.task
        sampler = GlobalBatchSampler(
            length=len(task.source),
            batch_size=task.batch_size,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            seed=task.seed,
            start_step=self.state.step,
            total_steps=task.total_steps,
        )
        on_gpu = self.device.type == "cuda"
        loader = patch_loader(task.dataset(), sampler, task.workers, task.prefetch, on_gpu)
        began = time.monotonic()
        for batch in loader:
            wait = time.monotonic() - began
            self.unreadable += batch.unreadable
            yield self._step_inputs(batch), wait
            began = time.monotonic()

    def _step_inputs(self, batch: Batch) -> StepInputs:
        task, step = self.task, self.state.step
        count = task.batch_size * task.grid**2
        permutation = jigsaw.global_permutation(task.seed, step, count)
        own = count // collectives.world_size()
        rows = permutation[collectives.rank() * own :][:own]
        drawn = augment.draw_augmentation(task.augmentation, task.seed, step, count)
        patches = batch.patches.to(self.device, non_blocking=True)
        return StepInputs(
            slots=collectives.exchange_patches(patches, permutation),
            augmentation=augment.select_rows(drawn, rows, self.device),
            permutation=permutation.to(self.device, non_blocking=True),
        )

    def _after_step(self) -> None:
        task, step = self.task, self.state.step
        ended = step == task.total_steps
        epoch_ended = step % task.steps_per_epoch == 0
        due = task.evaluate_every and epoch_ended
        if ended or (due and (step // task.steps_per_epoch) % task.evaluate_every == 0):
            self._evaluate()
        if ended or step % task.checkpoint_every == 0:
            self._save()

    def _evaluate(self) -> None:
        if self.task.evaluation is None:
            return
        with self.monitor.pause():
            precision = PRECISIONS[self.task.precision]
            score = self.task.evaluation(self.step.model.encoder, self.device, precision)
        self.scores.append((self.state.step, *score))
        self.monitor.scalar("knn_accuracy", self.state.step, score.accuracy)
        self.monitor.scalar("knn_accuracy_chance", self.state.step, score.chance)
        self.monitor.message(f"step {self.state.step}: {_tell(score)}")

    def _save(self) -> None:
        if not self.is_main:
            return
        task = self.task
        with self.monitor.pause():
            checkpoint.save(
                self.workdir,
                resume.contents(self.state, self.config, self.scores),
                self.state.step,
                task.keep_last,
                task.keep_every,
            )

    def _conclude(self) -> None:
        unreadable = torch.tensor(self.unreadable, device=self.device)
        if collectives.world_size() > 1:
            dist.all_reduce(unreadable)
        if unreadable:
            self.monitor.message(
                f"{int(unreadable)} unreadable images were skipped, the warnings name them"
            )
        self.monitor.message(f"done: {self.state.step} steps, everything is in {self.workdir}")
        if len(self.scores) > 1:
            (first, before, _), (last, after, chance) = self.scores[0], self.scores[-1]
            self.monitor.message(
                f"kNN accuracy on held-out images: {before:.1%} at step {first}, "
                f"{after:.1%} at step {last}, chance {chance:.1%}"
            )


def _tell(score: Score) -> str:
    return f"kNN accuracy {score.accuracy:.1%} (chance {score.chance:.1%})"


def _check_map(task: PretrainTask) -> None:
    side = task.grid * task.patch_size
    with torch.device("meta"):
        maps = task.model().encoder.eval()(torch.empty(1, 3, side, side))
    if maps.shape[-1] < task.grid:
        raise UserError(
            f"patch_size is {task.patch_size}; {task.encoder} sees montages of {side} pixels as "
            f"{maps.shape[-1]}x{maps.shape[-1]} features, too few to tell "
            f"{task.grid}x{task.grid} patches apart: take larger patches, or small_stem"
        )


def _check_counts(task: PretrainTask) -> None:
    if task.stop_after_steps is not None and task.stop_after_steps < 1:
        raise UserError(
            f"stop_after_steps is {task.stop_after_steps}; it must be 1 or more, or None"
        )
    for name, least in (
        *(("embedding_channels", 1), ("log_every", 1), ("checkpoint_every", 1), ("keep_last", 1)),
        *(("keep_every", 0), ("picture_every", 0), ("evaluate_every", 0)),
        *(("workers", 0), ("prefetch", 1), ("seed", 0)),
    ):
        value = getattr(task, name)
        if value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
    ranks = launched_processes()
    # Builds nothing: asks for what the sampler refuses, before the ranks have met.
    GlobalBatchSampler(
        length=len(task.source),
        batch_size=task.batch_size,
        rank=0,
        world_size=ranks,
        seed=task.seed,
        start_step=0,
        total_steps=0,
    )


def _megabytes(tensors: Iterator[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
