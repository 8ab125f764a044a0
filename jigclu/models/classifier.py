"""An encoder with a linear classifier."""

from torch import Tensor, nn

from jigclu.models.encoder import Encoder
from jigclu.ops.normalize import pool


class Classifier(nn.Module):
    """Maps images to class logits. The head is called fc, as in torchvision."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.channels, classes)
        # As published: weights from N(0, 0.01), bias 0.
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Maps float [batch, 3, height, width] to logits [batch, classes]."""
        return self.fc(pool(self.encoder(images)))
