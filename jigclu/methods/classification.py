"""Supervised classification: inputs of a step, and the forward pass to the cross-entropy."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from jigclu.methods.forward import Forward
from jigclu.models.classifier import Classifier
from jigclu.ops.normalize import normalize


class ClassificationInputs(NamedTuple):
    """Inputs of one training step on one rank, on its device.

    images: uint8 [local_batch, 3, size, size].
    labels: int64 [local_batch].
    """

    images: Tensor
    labels: Tensor


class ClassificationLosses(NamedTuple):
    """Scalars float32 [] of one rank: means over its images."""

    loss: Tensor
    accuracy: Tensor


class ClassifierForward(Forward):
    """The forward pass of a classifier: normalization, network, cross-entropy."""

    def __init__(
        self,
        network: Classifier,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        precision: str,
        channels_last: bool,
    ) -> None:
        """Keeps mean and std of RGB in [0, 1]; for the other arguments see `Forward`."""
        super().__init__(network, precision, channels_last)
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor, labels: Tensor) -> ClassificationLosses:
        """Returns this rank's loss and accuracy; for the arguments see `ClassificationInputs`."""
        logits = self.apply_network(normalize(images, self.mean, self.std)).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return ClassificationLosses(functional.cross_entropy(logits, labels), accuracy)
