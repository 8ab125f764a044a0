"""What tasks with labels share: their data, the encoder they begin with, their scores."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jigclu.data.images import ImageDataset, RandomCropDataset
from jigclu.data.loader import labeled_loader
from jigclu.data.prefetch import prefetch_to_device
from jigclu.data.sources import Source
from jigclu.data.subsets import check_labeled
from jigclu.methods.classification import ClassificationInputs
from jigclu.models.encoder import Encoder, create_encoder
from jigclu.ops import metrics
from jigclu.ops.normalize import check_normalization
from jigclu.system import collectives
from jigclu.system.machine import PRECISIONS, Machine
from jigclu.training.features import FeatureSettings
from jigclu.training.loop import TrainingTask, check_least, timed
from jigclu.training.monitor import Monitor
from jigclu.training.pictures import confusion_picture


@dataclass(frozen=True, kw_only=True)
class SupervisedTask(TrainingTask):
    """The fields of every task with labels; what a field means stands in gin/base.

    Units beside those of `TrainingTask`: train_size, resize and crop in pixels,
    val_batch_size in images of one rank.
    """

    val: Source
    train_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip_probability: float
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val_batch_size: int

    def training_images(self) -> RandomCropDataset:
        """Returns the images to learn from, randomly cropped and flipped."""
        return RandomCropDataset(
            source=self.training_source,
            seed=self.seed,
            size=self.train_size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            flip_probability=self.flip_probability,
        )

    def plain_images(self, source: Source) -> ImageDataset:
        """Returns the images of a source as they are scored."""
        return ImageDataset(source=source, resize=self.resize, crop=self.crop)

    def feature_settings(self, machine: Machine) -> FeatureSettings:
        """Returns how images that are scored become features."""
        return FeatureSettings(
            self.mean,
            self.std,
            self.val_batch_size,
            machine.workers.value,
            PRECISIONS[machine.precision.value],
        )

    def new_encoder(self) -> Encoder:
        """Builds the encoder; within `seeds.initial_weights` every rank builds the same."""
        return create_encoder(self.encoder, self.small_stem)

    def check_values(self) -> None:
        """Raises UserError for a field out of range, or data that fit not together."""
        check_labeled(self.source, self.val, "source", "val")
        super().check_values()
        self.training_images()
        self.plain_images(self.val)
        check_normalization(self.mean, self.std)
        check_least(self, {"val_batch_size": 1})

    def labeled_batches(
        self, start_step: int, device: torch.device, machine: Machine
    ) -> Iterator[tuple[ClassificationInputs, float]]:
        """Yields this rank's images and labels of every step left, and the seconds waited."""
        loader = labeled_loader(
            self.training_images(),
            self.sampler(start_step),
            machine.workers.value,
            self.prefetch,
            machine.pin_memory.value,
        )
        for batch, wait in timed(prefetch_to_device(loader, device)):
            yield ClassificationInputs(batch.image, batch.label), wait


@torch.no_grad()
def evaluate_probe(
    batches: Iterable[tuple[Tensor, Tensor]],
    head: Callable[[Tensor], Tensor],
    classes: int,
    device: torch.device,
) -> metrics.Counts:
    """Scores a head on the features of all ranks.

    Args:
      batches: features float32 [batch, channels] and labels int64 [batch] of this rank's share.
      head: maps features to logits [batch, classes].
      classes: how many there are.
      device: of the features.
    """
    counts = metrics.no_counts(classes, device)
    for features, labels in batches:
        counts = metrics.add(counts, head(features), labels.to(device))
    return metrics.Counts(*map(collectives.sum_over_ranks, counts))


def log_classification(
    monitor: Monitor, step: int, counts: metrics.Counts, classes: list[str]
) -> metrics.Scores:
    """Shows in TensorBoard which classes are recognized and which confused; returns the scores."""
    found = metrics.to_scores(counts)
    images = counts.confusion.sum(1).tolist()
    rows = [
        f"| {name} | {share:.1%} | {count} |"
        for name, share, count in zip(classes, found.per_class.tolist(), images, strict=True)
    ]
    table = "\n".join(["| class | top-1 | images |", "|---|---|---|", *rows])
    table += "\n\nThe picture `confusion` has them in this order: rows true, columns predicted."
    monitor.text("accuracy_per_class", step, table)
    monitor.image("confusion", step, confusion_picture(counts.confusion))
    return found
