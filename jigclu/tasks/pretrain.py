"""Pre-training by jigsaw clustering, told everything by its fields."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jigclu.data.crops import CropDataset
from jigclu.data.loader import Batch, crop_loader
from jigclu.data.prefetch import prefetch_to_device
from jigclu.methods.jigsaw import JigsawForward, Objective, StepInputs, check_objective
from jigclu.models.encoder import create_encoder
from jigclu.models.jigclu import JigClu
from jigclu.models.weights import load_into
from jigclu.ops import augment, crops, jigsaw, schedules
from jigclu.ops.optim import LossScaling, Optimizer, check_learning_rate
from jigclu.system import collectives, seeds
from jigclu.system.device import launched_processes
from jigclu.system.errors import UserError
from jigclu.system.machine import PRECISIONS, Machine
from jigclu.system.to_device import to_device
from jigclu.training.knn_evaluator import KnnEvaluation
from jigclu.training.loop import RunContext, TrainingRun, TrainingTask, check_least, timed
from jigclu.training.pictures import montage_picture
from jigclu.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class PretrainTask(TrainingTask):
    """Everything that defines a run of pre-training; what a field means stands in gin/base.

    Units beside those of `TrainingTask`: patch_size in pixels, smaller_patches in (epoch,
    pixels), pooling_map in features, picture_every in steps, micro_batch_size in images.
    """

    micro_batch_size: int | None
    grid: int
    cross_ratio: float
    patch_size: int
    smaller_patches: tuple[tuple[int, int], ...]
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    scaled_decoding: bool
    augmentation: augment.AugmentationSettings
    pooling_map: int | None
    embedding_channels: int
    temperature: float
    base_temperature: float
    clustering_weight: float
    location_weight: float
    optimizer: Optimizer
    learning_rate: float
    loss_scaling: LossScaling
    picture_every: int
    evaluation: KnnEvaluation | None

    def objective(self) -> Objective:
        """Returns what a step minimizes."""
        return Objective(
            augmentation=self.augmentation,
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            clustering_weight=self.clustering_weight,
            location_weight=self.location_weight,
        )

    def model(self) -> JigClu:
        """Builds the network with initial weights of the seed: the same on every rank."""
        with seeds.initial_weights(self.seed):
            encoder = create_encoder(self.encoder, self.small_stem)
            return JigClu(encoder, self.grid, self.pooling_map, self.embedding_channels)

    def training_step(self, model: JigClu, device: torch.device, machine: Machine) -> TrainingStep:
        """Builds the step that trains a network, and moves that to the device."""
        forward = JigsawForward(
            model,
            self.objective(),
            machine.precision.value,
            machine.channels_last.value,
            self.micro_batch_size,
        )
        return TrainingStep(
            forward, self.optimizer, self.loss_scaling, machine.compile.value, device
        )

    def dataset(self) -> CropDataset:
        """Returns the images of the source, cut into patches."""
        return CropDataset(
            source=self.source,
            seed=self.seed,
            draw=functools.partial(
                crops.jigsaw_crops,
                grid=self.grid,
                cross_ratio=self.cross_ratio,
                scale=self.crop_scale,
                ratio=self.crop_ratio,
            ),
            size=self.patch_size,
            smaller_sizes=self.smaller_patches,
            least_side=self.grid,
            scaled_decoding=self.scaled_decoding,
        )

    def check_values(self) -> None:
        """Raises UserError for a field out of range, or patches too small for the encoder."""
        super().check_values()
        check_learning_rate(self.learning_rate)
        check_objective(self.objective())
        jigsaw.check_grid(self.grid, self.cross_ratio)
        jigsaw.check_pooling_map(self.pooling_map, self.grid)
        crops.check_crop(self.crop_scale, self.crop_ratio)
        check_least(self, {"embedding_channels": 1, "picture_every": 0})
        self._check_micro_batch()
        schedules.check_patch_sizes(self.patch_size, self.smaller_patches, self.epochs)
        # torch keeps so many compilations of a function, and refuses one more.
        limit = torch._dynamo.config.recompile_limit
        if self.compile and len(self.smaller_patches) >= limit:
            raise UserError(
                f"smaller_patches has {len(self.smaller_patches)} sizes, and each compiles once; "
                f"give at most {limit - 1}, or bind compile = False"
            )
        self._check_map(schedules.patch_size_at(0, self.patch_size, self.smaller_patches))
        if self.evaluation is not None:
            self.evaluation.check()

    def _check_micro_batch(self) -> None:
        size, of_device = self.micro_batch_size, self.batch_size // launched_processes()
        if size is not None and (size < 1 or of_device % size):
            raise UserError(
                f"micro_batch_size is {size}; it must divide the {of_device} images of a device, "
                "or be None for all at once"
            )

    def _check_map(self, patch_size: int) -> None:
        side = self.grid * patch_size
        with torch.device("meta"):
            maps = self.model().encoder.eval()(torch.empty(1, 3, side, side))
        if maps.shape[-1] < self.grid:
            raise UserError(
                f"patch_size is {patch_size}; {self.encoder} sees montages of {side} pixels "
                f"as {maps.shape[-1]}x{maps.shape[-1]} features, too few to tell "
                f"{self.grid}x{self.grid} patches apart: take larger patches, or small_stem"
            )

    def plan_details(self) -> list[str]:
        """Returns the montages of a step and the memory of the state."""
        with torch.device("meta"):
            network = self.model()
        parameters = _megabytes(network.parameters())
        buffers = _megabytes(network.buffers())
        side = self.grid * self.patch_size
        return [
            f"montages: {self.batch_size // launched_processes()} of {side}x{side} pixels a device",
            f"state: {2 * parameters + buffers:.1f} MB a device (parameters {parameters:.1f}, "
            f"momentum {parameters:.1f}, buffers {buffers:.1f}), "
            f"and {parameters:.1f} MB of gradients",
        ]

    def begin(self, context: RunContext) -> "PretrainRun":
        """Returns the run of this process, in the state before its first step."""
        return PretrainRun(self, context)


class PretrainRun(TrainingRun):
    """One process of a run of pre-training."""

    scores_untrained = True

    def __init__(self, task: PretrainTask, context: RunContext) -> None:
        """As `TrainingRun`; builds the network and its step."""
        self.task = task
        model = task.model()
        self.step = task.training_step(model, context.device, context.machine)
        self.encoder = model.encoder
        self.precision = PRECISIONS[context.machine.precision.value]
        self.unreadable = 0
        self.chance = torch.tensor(1 / task.grid**2, device=context.device)
        super().__init__(task, context, self.step.initial_state())

    def begin_with(self, path: Path) -> str:
        """Takes the initial weights of a file; returns what to tell of them."""
        return load_into(path, {**self.state.parameters, **self.state.buffers})

    def inputs(self) -> Iterator[tuple[StepInputs, float]]:
        """Yields the inputs of every step left, and the seconds waited for them."""
        task, machine = self.task, self.context.machine
        loader = crop_loader(
            task.dataset(),
            task.sampler(self.state.step),
            machine.workers.value,
            task.prefetch,
            machine.pin_memory.value,
        )
        for batch, wait in timed(prefetch_to_device(loader, self.device)):
            self.unreadable += batch.unreadable
            yield self._step_inputs(batch), wait

    def _step_inputs(self, batch: Batch) -> StepInputs:
        task, step = self.task, self.state.step
        count = task.batch_size * task.grid**2
        permutation = jigsaw.global_permutation(task.seed, step, count)
        own = count // collectives.world_size()
        rows = permutation[collectives.rank() * own :][:own]
        drawn = augment.draw_augmentation(task.augmentation, task.seed, step, count)
        return StepInputs(
            slots=collectives.exchange_patches(batch.crops, permutation),
            augmentation=augment.select_rows(drawn, rows, self.device),
            permutation=to_device(permutation, self.device),
        )

    def take_step(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Moves the state on by one step; returns its metrics."""
        self._show(inputs)
        rate = self.task.learning_rate * self.task.schedule_at(self.state.step)
        self.state, metrics = self.step(self.state, inputs, rate)
        return metrics | {"location_accuracy_chance": self.chance}

    def _show(self, inputs: StepInputs) -> None:
        task, step = self.task, self.state.step
        if collectives.rank() == 0 and task.picture_every and step % task.picture_every == 0:
            picture = montage_picture(inputs, task.augmentation, task.grid)
            self.monitor.image("montages", step, picture)

    def score(self) -> dict[str, float]:
        """Returns the kNN accuracy of the encoder, beside chance, where the task has one."""
        if self.task.evaluation is None:
            return {}
        score = self.task.evaluation(self.encoder, self.precision)
        return {"knn_accuracy": score.accuracy, "knn_accuracy_chance": score.chance}

    def conclude(self) -> None:
        """Tells how many images were unreadable, and what the encoder learned."""
        unreadable = collectives.sum_over_ranks(torch.tensor(self.unreadable, device=self.device))
        if unreadable:
            self.monitor.message(
                f"{int(unreadable)} unreadable images were skipped, the warnings name them"
            )
        if len(self.scores) > 1:
            (first, before), (last, after) = self.scores[0], self.scores[-1]
            self.monitor.message(
                f"kNN accuracy on held-out images: {before['knn_accuracy']:.1%} at step {first}, "
                f"{after['knn_accuracy']:.1%} at step {last}, "
                f"chance {after['knn_accuracy_chance']:.1%}"
            )


def _megabytes(tensors: Iterator[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
