"""An encoder with a linear classifier, and what is minimised of the two."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from jigclu.encoder import Encoder
from jigclu.features import normalised, pooled
from jigclu.steps import Forward


class Classifier(nn.Module):
    """Images to class logits; the parameters of the head are called fc, as torchvision's."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.channels, classes)
        # Published: from N(0, 0.01), and 0.
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Maps float [batch, 3, height, width] to logits [batch, classes]."""
        return self.fc(pooled(self.encoder(images)))


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
        logits = self.apply_model(normalised(images, self.mean, self.std)).float()
        accuracy = (logits.argmax(1) == labels).float().mean()
        return ClassificationLosses(functional.cross_entropy(logits, labels), accuracy)
