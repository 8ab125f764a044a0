"""Classification: a classifier's inputs, and its forward pass to the cross-entropy."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from jigclu.methods.forward import Forward
from jigclu.models.classifier import Classifier
from jigclu.ops.normalize import normalize


class ClassificationInputs(NamedTuple):
    """What one rank needs for one step, on its device.

    images: uint8 [local_batch, 3, size, size].
    labels: int64 [local_batch].
    """

    images: Tensor
    labels: Tensor


class ClassificationLosses(NamedTuple):
    """Scalars [] of one rank: the means over its images."""

    loss: Tensor
    accuracy: Tensor


class ClassifierForward(Forward):
    """From bytes of images to the cross-entropy of their classes."""

    def __init__(
        self,
        model: Classifier,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        precision: str,
        channels_last: bool,
    ) -> None:
        """As `Forward`; mean and std are of RGB in [0, 1]."""
        super().__init__(model, precision, channels_last)
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor, labels: Tensor) -> ClassificationLosses:
        """Returns this rank's loss and accuracy; for the arguments see `ClassificationInputs`."""
        logits = self.apply_model(normalize(images, self.mean, self.std)).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return ClassificationLosses(functional.cross_entropy(logits, labels), accuracy)
