"""A linear classifier that is trained alongside pre-training, on features of its own steps.

It shows from the first step on whether the features tell the classes apart, and costs next to
nothing, because the encoder has computed the features anyway. No gradient reaches the encoder.
Its accuracy is that on augmented training crops before each of its updates, which comes before
most crops are seen again; `ProbeEvaluator` measures the accuracy on held-out images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.ops import probes
from jigclu.ops.optim import check_learning_rate, check_momentum
from jigclu.system import seeds
from jigclu.system.to_device import to_device
from jigclu.training.probe_step import ProbeStep, initial_state
from jigclu.training.state import TrainState

# Its metrics; no alarm counts them, because they are learned even from a random encoder.
LOSS, ACCURACY = "online_probe_loss", "online_probe_accuracy"


@dataclass(frozen=True, kw_only=True)
class OnlineProbe:
    """Settings of the classifier; gin/base/online_probe.gin describes each of them.

    Attributes:
      learning_rate: constant, because the features keep changing.
      momentum: in [0, 1).
    """

    learning_rate: float
    momentum: float

    def __post_init__(self) -> None:
        check_learning_rate(self.learning_rate)
        check_momentum(self.momentum)


class Labels(NamedTuple):
    """Labels of the training images.

    of_images: int64 [images], on the CPU.
    classes: number of classes.
    batches: from a step on, yields the images of each global batch.
    """

    of_images: Tensor
    classes: int
    batches: Callable[[int], Iterator[list[int]]]


class RunningProbe:
    """The classifier of a run, the same on every rank.

    `tensors` are to be kept in checkpoints; a resumed run copies their values into them.
    """

    def __init__(
        self, settings: OnlineProbe, labels: Labels, channels: int, seed: int, device: torch.device
    ) -> None:
        """Initializes the classifier with the seed.

        Args:
          settings: see `OnlineProbe`.
          labels: of the training images.
          channels: of the features.
          seed: of the run.
          device: of the features.
        """
        with seeds.initial_weights(seed):
            initial = probes.initial_probes(1, labels.classes, channels)
        initial = probes.Probes(*(value.to(device) for value in initial))
        self._state: TrainState = initial_state(initial, {})
        self._step = ProbeStep([(settings.learning_rate, 0.0)], settings.momentum, device)
        self._labels = labels
        self._batches: Iterator[list[int]] | None = None
        self._device = device

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Weights and momentum, by names of their own."""
        return {f"online_probe.{name}": value for name, value in self._state.tensors.items()}

    def train(self, step: int, features: Tensor, images: Tensor, rows: int) -> dict[str, Tensor]:
        """Takes one step of the classifier; nothing waits for the device.

        Args:
          step: of pre-training, counted from 0; calls must be for consecutive steps.
          features: float [local_rows, channels] of this rank's crops, without gradient.
          images: int64 [local_rows], the number of each crop's image in the global batch.
          rows: crops of the global batch.

        Returns:
          Loss and accuracy, float32 [], over the global batch.
        """
        if self._batches is None:
            self._batches = self._labels.batches(step)
        batch = self._labels.of_images[torch.tensor(next(self._batches))]
        # A bad step must not spoil the classifier.
        finite = features.float().nan_to_num(0.0, 0.0, 0.0)
        scaled = functional.layer_norm(finite, finite.shape[1:])
        labels = to_device(batch, self._device)[images]
        with torch.enable_grad():
            self._state, metrics = self._step(self._state, scaled, labels, rows, 1.0)
        return {LOSS: metrics["loss"], ACCURACY: metrics["accuracy"]}
