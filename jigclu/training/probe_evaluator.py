"""Linear probe: accuracy of a linear classifier trained on frozen features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jigclu.data.images import ImageDataset
from jigclu.data.sampler import epoch_order
from jigclu.data.sources import Source
from jigclu.data.subsets import check_labeled
from jigclu.data.transform import EvalTransform
from jigclu.models.encoder import Encoder
from jigclu.ops import metrics, probes
from jigclu.ops.optim import check_learning_rate, check_momentum
from jigclu.ops.probes import Probes
from jigclu.system import collectives, progress, seeds
from jigclu.system.errors import check
from jigclu.training.evaluation_report import POINTS, EvaluationReport, choose_evenly
from jigclu.training.features import FeatureSettings, choose_settings, encode
from jigclu.training.probe_step import ProbeStep, initial_state, to_probes
from jigclu.training.settings import Loading


class LabeledFeatures(NamedTuple):
    """Features of this rank's share of a data set, on the device.

    features: float32 [images, channels].
    labels: int64 [images].
    image_index: int64 [images], index in the source.
    """

    features: Tensor
    labels: Tensor
    image_index: Tensor

    def standardize(self, mean: Tensor, deviation: Tensor) -> "LabeledFeatures":
        """Returns features minus a mean, divided by a deviation, each [channels]."""
        return self._replace(features=(self.features - mean) / deviation)


@dataclass(frozen=True, kw_only=True)
class ProbeEvaluator:
    """Accuracy of a linear probe; gin/base/probe.gin describes each setting.

    The encoder runs once per image, without augmentation, and one classifier is trained on its
    features, which stay in memory, standardized by their mean and deviation in the training
    images. The result is the same on any number of ranks.

    Attributes:
      every: epochs between evaluations; 0 for none between the first and the last step.
      source: labeled images to train the probe on.
      val: labeled images to evaluate it on.
      eval_transform: preprocessing of both.
      epochs: passes of the probe over the features.
      batch_size: images of the global batch of the probe, and images encoded at once per device.
      learning_rate: initial learning rate of the probe; decreases linearly to 0.
      momentum: of the probe's SGD, in [0, 1).
      seed: of the probe's initial weights and of the order of images.
      loading: worker processes.
    """

    every: int
    source: Source
    val: Source
    eval_transform: EvalTransform
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    seed: int
    loading: Loading

    def __post_init__(self) -> None:
        check(self.every >= 0, "every", self.every, "0 or more epochs")
        check_labeled(self.source, self.val, "source", "val")
        check(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check_learning_rate(self.learning_rate)
        check_momentum(self.momentum)
        seeds.check_seed(self.seed)

    def __call__(
        self, encoder: Encoder, precision: torch.dtype, report: EvaluationReport | None = None
    ) -> dict[str, float]:
        """Returns probe_accuracy and probe_accuracy_chance, the share of the most frequent class.

        Every rank calls it with the same encoder, whose mode stays as it was.

        Args:
          encoder: on the device on which to compute.
          precision: of autocast in the encoder; float32 for none.
          report: receives pictures; None for none.
        """
        settings = self._settings(next(encoder.parameters()).device, precision)
        train = self._encode(encoder, self.source, settings)
        mean, deviation = _moments(train.features, len(self.source))
        probe = self._train(train.standardize(mean, deviation))
        val = self._encode(encoder, self.val, settings).standardize(mean, deviation)
        classes = self.val.classes
        with torch.no_grad():
            predicted = probes.probe_logits(probe, val.features)[0].argmax(1)
        confusion = metrics.confuse(val.labels, predicted, len(classes))
        confusion = collectives.sum_over_ranks(confusion)
        if report is not None:
            report.confusion("probe_confusion", confusion, classes)
            if report.is_last:
                self._show_embedding(report, val)
        return {
            "probe_accuracy": confusion.trace().item() / len(self.val),
            "probe_accuracy_chance": confusion.sum(1).max().item() / len(self.val),
        }

    def _show_embedding(self, report: EvaluationReport, val: LabeledFeatures) -> None:
        indices = choose_evenly(len(self.val), POINTS)
        row_of = torch.full((len(self.val),), -1, dtype=torch.int64)
        row_of[val.image_index] = torch.arange(len(val.image_index))
        rows = row_of[indices]
        points = torch.zeros(len(indices), val.features.shape[1], device=val.features.device)
        points[rows >= 0] = val.features[rows[rows >= 0]]
        # Each row is filled by one rank, and 0 on all others.
        points = collectives.sum_over_ranks(points)
        images = ImageDataset(source=self.val, transform=self.eval_transform)
        report.embedding("probe", images, indices, points)

    def _settings(self, device: torch.device, precision: torch.dtype) -> FeatureSettings:
        name = "probe_evaluator.batch_size"
        return choose_settings(
            self.eval_transform, self.batch_size, self.loading, device, precision, name
        )

    def _encode(
        self, encoder: Encoder, source: Source, settings: FeatureSettings
    ) -> LabeledFeatures:
        device = next(encoder.parameters()).device
        features = [torch.empty(0, encoder.channels, device=device)]
        labels = [torch.empty(0, dtype=torch.int64, device=device)]
        indices = [torch.empty(0, dtype=torch.int64)]
        images = ImageDataset(source=source, transform=self.eval_transform)
        for batch_features, batch in encode(encoder, images, settings):
            features.append(batch_features)
            labels.append(batch.label.to(device))
            indices.append(batch.image_index)
        return LabeledFeatures(torch.cat(features), torch.cat(labels), torch.cat(indices))

    def _train(self, data: LabeledFeatures) -> Probes:
        device, channels = data.features.device, data.features.shape[1]
        with seeds.initial_weights(self.seed):
            initial = probes.initial_probes(1, len(self.source.classes), channels)
        state = initial_state(Probes(*(value.to(device) for value in initial)), {})
        step = ProbeStep([(self.learning_rate, 0.0)], self.momentum, device)
        batches = list(self._batches(data))
        for number, (rows, size) in enumerate(progress.track(batches, "training the probe")):
            factor = 1 - number / len(batches)
            state, _ = step(state, data.features[rows], data.labels[rows], size, factor)
        return to_probes(state)

    def _batches(self, data: LabeledFeatures) -> Iterator[tuple[Tensor, int]]:
        """Yields this rank's rows of every global batch, and the size of that batch."""
        images = len(self.source)
        row_of = torch.full((images,), -1, dtype=torch.int64)
        row_of[data.image_index] = torch.arange(len(data.image_index))
        for epoch in range(self.epochs):
            for batch in epoch_order(self.seed, epoch, images).split(self.batch_size):
                rows = row_of[batch]
                yield rows[rows >= 0].to(data.features.device), len(batch)


def _moments(features: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of all ranks' features, float32 [channels]; no deviation is 0.

    Args:
      features: float32 [own_images, channels], of this rank's share.
      images: of all ranks.
    """
    mean = collectives.sum_over_ranks(features.sum(0)) / images
    variance = collectives.sum_over_ranks((features - mean).square().sum(0)) / images
    return mean, variance.sqrt().clamp_min(1e-6)
