"""Semantic segmentation: a linear probe on a frozen encoder's feature map, or FCN fine-tuning."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.loader import MaskedBatch, masked_loader, single_masked_loader
from jigclu.data.prefetch import prefetch_to_device
from jigclu.data.segmentation import (
    MaskedCrops,
    MaskedDataset,
    SegmentationSource,
    check_masks,
)
from jigclu.data.subsets import check_disjoint, check_same_classes
from jigclu.methods.segmentation import (
    SegmentationInputs,
    SegmenterForward,
    segmentation_inputs,
)
from jigclu.models.encoder import encoder_tensors
from jigclu.models.segmenter import HEADS, Segmenter
from jigclu.ops.normalize import check_normalization, normalize
from jigclu.ops.optim import Optimizer, check_learning_rate
from jigclu.ops.pictures import SHOWN, confusion_picture, image_grid, segmentation_picture
from jigclu.ops.segmentation import SegmentationScores, count_pixels, to_scores
from jigclu.system import collectives, memory, progress, seeds, signals
from jigclu.system.errors import check
from jigclu.system.machine import Machine
from jigclu.system.on_resume import ByContent, Free, Logged
from jigclu.training.features import rank_indices
from jigclu.training.initial_weights import load_into
from jigclu.training.loop import Evaluation, RunResult, train
from jigclu.training.monitor import Monitor
from jigclu.training.process import Process
from jigclu.training.resume import History
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from jigclu.training.task import TrainingTask

_PICTURES = 4  # Images of val whose predictions TensorBoard shows.


@dataclass(frozen=True, kw_only=True)
class SegmentTask(TrainingTask):
    """Settings of semantic segmentation; gin/base/segment.gin describes each of them.

    Attributes:
      source: training images with masks.
      val: images with masks to evaluate on, of the classes of `source`.
      head: "linear" trains a 1x1 convolution on the frozen encoder's last feature map; "fcn"
        trains the encoder and torchvision's FCN head.
      dilated_stages: last stages of the encoder, 0 to 2, that keep the size of the map.
      train_size: side of the random crops in pixels.
      scale: minimum and maximum factor by which a training image is resized before the crop.
      flip_probability: of mirroring left and right, in [0, 1].
      mean: of RGB in [0, 1], which normalizes images.
      std: of RGB in [0, 1].
      eval_resize: pixels of the shorter side of the encoder's input; None keeps the size of the
        image. In both cases all pixels of the mask are scored.
      evaluate_every: epochs between evaluations; 0 evaluates only after the last step.
      optimizer: of the trained parameters.
      learning_rate: peak of the schedule.
    """

    title: ClassVar = "segmentation"

    source: ByContent[SegmentationSource]
    val: Free[SegmentationSource]
    head: str
    dilated_stages: int
    train_size: int
    scale: tuple[float, float]
    flip_probability: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_resize: Free[int | None]
    evaluate_every: Free[int]
    optimizer: Optimizer
    learning_rate: Logged[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.head in HEADS, "head", self.head, " or ".join(map(repr, HEADS)))
        check_same_classes(self.source.pixel_classes, self.val.pixel_classes, "source", "val")
        check_disjoint(self.source, self.val, "source", "val")
        self.training_images()
        check_normalization(self.mean, self.std)
        size = self.eval_resize
        check(size is None or size >= 1, "eval_resize", size, "1 or more, in pixels, or None")
        check(self.evaluate_every >= 0, "evaluate_every", self.evaluate_every, "0 or more epochs")
        check_learning_rate(self.learning_rate)

    @property
    def label_description(self) -> str:
        """The labels of the training images, for the plan."""
        return f"masks of {len(self.source.pixel_classes)} classes"

    def check(self, workdir: Path) -> None:
        """See `TrainingTask.check`; also reads every image and mask."""
        super().check(workdir)
        with torch.device("meta"):
            self.new_encoder(self.dilated_stages)
        check_masks(self.source, "source")
        check_masks(self.val, "val")

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        trained = {
            "linear": f"a linear head on a frozen {self.encoder}",
            "fcn": f"{self.encoder} and an FCN head",
        }[self.head]
        size = f"{self.train_size}x{self.train_size}"
        return [
            *super().summary(),
            f"validation: {len(self.val):,} images",
            f"trained: {trained}, on crops of {size} pixels",
        ]

    def network(self) -> Segmenter:
        """Builds the network with initial weights of the seed, the same on every rank."""
        with seeds.initial_weights(self.seed):
            encoder = self.new_encoder(self.dilated_stages)
            return Segmenter(encoder, self.head, len(self.source.pixel_classes))

    def training_images(self) -> MaskedCrops:
        """Returns the training images, randomly scaled, cropped and flipped."""
        return MaskedCrops(
            source=self.source,
            seed=self.seed,
            size=self.train_size,
            scale=self.scale,
            flip_probability=self.flip_probability,
        )

    def masked_batches(
        self, start_step: int, device: torch.device, machine: Machine
    ) -> Iterator[MaskedBatch]:
        """Yields this rank's images and masks for each step from start_step on."""
        loader = masked_loader(
            self.training_images(),
            self.sampler(start_step),
            machine.workers.value,
            self.loading.prefetch,
            self.loading.timeout,
            machine.pin_memory.value,
        )
        return prefetch_to_device(loader, device)

    def draw(self, inputs: SegmentationInputs) -> Tensor:
        """Draws the first training images of a step: uint8 [3, height, width]."""
        images = normalize(inputs.images[:SHOWN], self.mean, self.std)
        return image_grid(images, self.mean, self.std)

    def run(
        self, workdir: Path, config: str, should_stop: Callable[[], bool] = signals.requested
    ) -> RunResult:
        """Trains and evaluates the network; for the arguments see `PretrainTask.run`."""
        with self.process(workdir, config) as process:
            machine, device = process.machine, process.device
            with progress.status("building the network"):
                network = self.network()
                forward = SegmenterForward(
                    network,
                    self.mean,
                    self.std,
                    machine.precision.value,
                    machine.channels_last.value,
                )
                scaling, compiled = self.compute.loss_scaling, machine.compile.value
                skips = self.schedule.bad_steps > 0
                step = TrainingStep(forward, self.optimizer, scaling, compiled, device, skips)
            every = self.epochs_to_steps(self.evaluate_every)
            evaluate = partial(self._evaluate, forward, process)
            return train(
                self,
                process,
                state=step.initial_state(),
                initialize=partial(
                    load_into, tensors=encoder_tensors(network.encoder), encoder=self.encoder
                ),
                batches=partial(self.masked_batches, device=device, machine=machine),
                prepare=lambda batch, step: segmentation_inputs(*batch),
                take_step=partial(self._take_step, step),
                evaluations=[Evaluation(every=every, before_training=False, evaluate=evaluate)],
                pictures={"inputs": self.draw},
                summarize=self._summarize,
                should_stop=should_stop,
            )

    def _take_step(
        self, step: TrainingStep, state: TrainState, inputs: SegmentationInputs, measured: bool
    ) -> StepResult:
        rate = self.learning_rate * self.learning_rate_factor(state.step)
        return step(state, inputs, rate, measured)

    @torch.no_grad()
    def _evaluate(
        self, forward: SegmenterForward, process: Process, monitor: Monitor, step: int
    ) -> dict[str, float]:
        """Returns the scores of all pixels of val, over all ranks."""
        classes = self.val.pixel_classes
        confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        confusion = confusion.to(process.device)
        images = MaskedDataset(source=self.val, resize=self.eval_resize)
        share = Subset(images, rank_indices(len(images)))
        loader = single_masked_loader(
            share,
            process.machine.workers.value,
            self.loading.prefetch,
            self.loading.timeout,
        )
        forward.network.eval()
        with progress.status("segmenting images", total=len(share)) as work:
            for number, (image, mask) in enumerate(loader):
                truth = mask.to(process.device)
                with memory.advise("bind eval_resize to fewer pixels"):
                    logits = forward.logits(image.to(process.device), *mask.shape[1:])
                    predicted = logits.argmax(1)
                confusion += count_pixels(predicted, truth, len(classes))
                if number < _PICTURES:
                    shown = transforms.resize(image[0], list(mask.shape[1:]), antialias=True)
                    picture = segmentation_picture(shown, mask[0], predicted[0], len(classes))
                    monitor.image(f"predictions/{number}", step, picture)
                work.done += 1
        forward.network.train()
        return log_segmentation(monitor, step, collectives.sum_over_ranks(confusion), classes)

    def _summarize(self, history: History) -> list[str]:
        return describe_segmentation(history, len(self.val), self.val.pixel_classes)


def log_segmentation(
    monitor: Monitor, step: int, confusion: Tensor, classes: list[str]
) -> dict[str, float]:
    """Reports per-class scores and the confusion matrix of pixels; returns all scores by name.

    Args:
      monitor: receives the reports.
      step: steps taken so far.
      confusion: int64 [classes, classes], pixels by true class (row) and predicted class.
      classes: their names. Scores of classes that do not occur are left out.
    """
    scores = to_scores(confusion)
    pixels = confusion.sum(1).tolist()
    rows = [
        f"| {name} | {share:.1%} | {count} |"
        for name, share, count in zip(classes, scores.iou.tolist(), pixels, strict=True)
    ]
    table = "\n".join(["| class | IoU | pixels |", "|---|---|---|", *rows])
    table += "\n\nThe picture `confusion` has the same order: rows are true classes, columns "
    monitor.text("iou_per_class", step, f"{table}predicted classes.")
    monitor.image("confusion", step, confusion_picture(confusion, classes))
    return _scores_by_name(scores, classes)


def _scores_by_name(scores: SegmentationScores, classes: list[str]) -> dict[str, float]:
    found = {"mean_iou": scores.mean_iou, "pixel_accuracy": scores.pixel_accuracy}
    named = zip(classes, scores.iou.tolist(), strict=True)
    return found | {f"iou/{name}": value for name, value in named if not math.isnan(value)}


def describe_segmentation(history: History, images: int, classes: list[str]) -> list[str]:
    """Returns a message about the last scores on val, if there are any."""
    if not history:
        return []
    step, scores = history[-1]
    absent = [name for name in classes if f"iou/{name}" not in scores]
    without = f" (neither in masks nor predicted: {', '.join(absent)})" if absent else ""
    return [
        f"mIoU {scores['mean_iou']:.1%} of {len(classes) - len(absent)} classes{without}, pixel "
        f"accuracy {scores['pixel_accuracy']:.1%} of {images:,} images of val, after {step} steps"
    ]
