"""Supervised classification: inputs of a step, and the forward pass to the cross-entropy."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from jigclu.methods.forward import NormalizingForward


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


class ClassifierForward(NormalizingForward):
    """The forward pass of a classifier: normalization, network, cross-entropy."""

    def forward(self, images: Tensor, labels: Tensor) -> tuple[ClassificationLosses, tuple[()]]:
        """Returns this rank's loss and accuracy; for the arguments see `ClassificationInputs`."""
        logits = self.apply_network(self.normalize(images)).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return ClassificationLosses(functional.cross_entropy(logits, labels), accuracy), ()
