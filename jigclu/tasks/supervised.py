"""Tasks with labels: their images, evaluation and reports."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from absl import logging
from torch import Tensor

from jigclu.data.images import ImageDataset, RandomCropDataset
from jigclu.data.loader import labeled_loader
from jigclu.data.prefetch import prefetch_to_device
from jigclu.data.sources import Source
from jigclu.data.subsets import check_labeled
from jigclu.data.transform import EvalTransform
from jigclu.methods.classification import ClassificationInputs
from jigclu.ops import metrics
from jigclu.ops.pictures import SHOWN, confusion_picture, image_grid
from jigclu.system import collectives
from jigclu.system.errors import check
from jigclu.system.machine import PRECISIONS, Machine
from jigclu.system.on_resume import Free
from jigclu.training.features import FeatureSettings
from jigclu.training.loop import Evaluation
from jigclu.training.monitor import Monitor
from jigclu.training.resume import History
from jigclu.training.task import TrainingTask


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(TrainingTask):
    """Settings of every task with labels; gin/base describes each of them.

    Attributes:
      val: labeled images to evaluate on, of the classes of `source`.
      train_size: side of the random crops in pixels.
      crop_scale: minimum and maximum share of the image's area that a crop shows.
      crop_ratio: minimum and maximum width / height of a crop.
      flip_probability: of mirroring left and right, in [0, 1].
      eval_transform: of val; its mean and std normalize training images, too.
      val_batch_size: images per device and batch.
      evaluate_every: epochs between evaluations; 0 evaluates only after the last step.
    """

    val: Free[Source]
    train_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip_probability: float
    eval_transform: EvalTransform
    val_batch_size: Free[int]
    evaluate_every: Free[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labeled(self.source, self.val, "source", "val")
        self.training_images()
        check(self.val_batch_size >= 1, "val_batch_size", self.val_batch_size, "1 or more")
        check(self.evaluate_every >= 0, "evaluate_every", self.evaluate_every, "0 or more epochs")

    def summary(self) -> list[str]:
        """Returns the lines of the plan that do not depend on the machine."""
        return [*super().summary(), f"validation: {len(self.val):,} images"]

    @property
    def references(self) -> dict[str, float]:
        """Accuracy on val of always guessing the most frequent class, or five of them."""
        counts = torch.tensor(self.val.labels).bincount().sort(descending=True).values
        return {f"top{k}_chance": counts[:k].sum().item() / len(self.val) for k in (1, 5)}

    @property
    def training_crop(self) -> tuple[Any, ...]:
        """All settings that determine the crops of training images."""
        scale, ratio = self.crop_scale, self.crop_ratio
        return self.seed, self.train_size, scale, ratio, self.flip_probability

    @property
    def evaluation_crop(self) -> tuple[Any, ...]:
        """All settings that determine the crops of evaluated images."""
        return self.eval_transform.resize, self.eval_transform.crop

    def training_images(self) -> RandomCropDataset:
        """Returns the training images, randomly cropped and flipped."""
        return RandomCropDataset(
            source=self.training_source,
            seed=self.seed,
            size=self.train_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip_probability=self.flip_probability,
        )

    def evaluation_images(self, source: Source) -> ImageDataset:
        """Returns the images of a source, preprocessed for evaluation."""
        return ImageDataset(source=source, transform=self.eval_transform)

    def feature_settings(self, machine: Machine) -> FeatureSettings:
        """Returns the settings that turn images into features."""
        return FeatureSettings(
            self.eval_transform,
            self.val_batch_size,
            "val_batch_size",
            machine.workers.value,
            self.loading.prefetch,
            self.loading.timeout,
            PRECISIONS[machine.precision.value],
        )

    def labeled_batches(
        self, start_step: int, device: torch.device, machine: Machine
    ) -> Iterator[ClassificationInputs]:
        """Yields this rank's images and labels for each step from start_step on."""
        loader = labeled_loader(
            self.training_images(),
            self.sampler(start_step),
            machine.workers.value,
            self.loading.prefetch,
            self.loading.timeout,
            machine.pin_memory.value,
        )
        warned: set[int] = set()
        for batch in prefetch_to_device(loader, device):
            for index in sorted(set(batch.one_color) - warned):
                warned.add(index)
                name, count = self.training_source.name(index), len(warned)
                logging.warning("all pixels have one color: %s (%d images so far)", name, count)
            yield ClassificationInputs(batch.image, batch.label)

    def evaluation(self, evaluate: Callable[[Monitor, int], dict[str, float]]) -> Evaluation:
        """Returns an evaluation on val every `evaluate_every` epochs."""
        every = self.epochs_to_steps(self.evaluate_every)
        return Evaluation(every=every, before_training=False, evaluate=evaluate)

    def draw(self, inputs: ClassificationInputs) -> Tensor:
        """Draws the first training images of a step: uint8 [3, height, width]."""
        transform = self.eval_transform
        images = transform.normalize(inputs.images[:SHOWN])
        return image_grid(images, transform.mean, transform.std)


@torch.no_grad()
def evaluate_probe(
    batches: Iterable[tuple[Tensor, Tensor]],
    probe: Callable[[Tensor], Tensor],
    classes: int,
    device: torch.device,
) -> metrics.Counts:
    """Counts correct classifications of features, over all ranks.

    Args:
      batches: features float32 [batch, channels] and labels int64 [batch] of this rank's share.
      probe: maps features to logits [batch, classes].
      classes: number of classes.
      device: of the features.
    """
    counts = metrics.no_counts(classes, device)
    for features, labels in batches:
        counts = metrics.add(counts, probe(features), labels.to(device))
    return metrics.Counts(*map(collectives.sum_over_ranks, counts))


def log_classification(
    monitor: Monitor, step: int, counts: metrics.Counts, classes: list[str]
) -> metrics.Scores:
    """Reports per-class accuracy and the confusion matrix; returns the scores."""
    scores = metrics.to_scores(counts)
    images = counts.confusion.sum(1).tolist()
    rows = [
        f"| {name} | {share:.1%} | {count} |"
        for name, share, count in zip(classes, scores.per_class.tolist(), images, strict=True)
    ]
    table = "\n".join(["| class | top-1 | images |", "|---|---|---|", *rows])
    table += "\n\nThe picture `confusion` has the same order: rows are true classes, columns "
    monitor.text("accuracy_per_class", step, f"{table}predicted classes.")
    monitor.image("confusion", step, confusion_picture(counts.confusion, classes))
    return scores


def describe_accuracy(history: History, images: int, details: str = "") -> list[str]:
    """Returns a message about the last accuracy on val, if there is one."""
    if not history:
        return []
    step, scores = history[-1]
    return [
        f"top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%} of {images:,} images of val, "
        f"after {step} steps{details}"
    ]
