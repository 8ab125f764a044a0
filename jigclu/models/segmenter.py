"""An encoder with a head that classifies every location of its feature map."""

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from jigclu.models.batch_norm import BatchNorm
from jigclu.models.encoder import Encoder

HEADS = ("linear", "fcn")


class Segmenter(nn.Module):
    """Maps images to maps of class logits.

    The head "linear" is batch normalization and a 1x1 convolution on a frozen encoder, which
    always stays in eval mode. Normalization gives the features of any encoder, also of an
    untrained one, the same scale (as in DINOv2: Oquab et al., TMLR 2024). "fcn" is torchvision's
    FCN head, trained together with the encoder (Long et al., CVPR 2015).
    """

    def __init__(self, encoder: Encoder, head: str, classes: int) -> None:
        """Initializes the head with torch's current seed.

        Args:
          encoder: with initial weights.
          head: one of `HEADS`.
          classes: number of classes.
        """
        super().__init__()
        self.encoder = encoder
        self.frozen = head == "linear"
        self.head = (_linear_head if self.frozen else _fcn_head)(encoder.channels, classes)
        encoder.requires_grad_(not self.frozen)
        self.train()

    def train(self, mode: bool = True) -> "Segmenter":
        """Sets the mode; a frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Maps float [batch, 3, height, width] to logits [batch, classes, ...] of the map."""
        return self.head(self.encoder(images))


def _linear_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(BatchNorm(channels), nn.Conv2d(channels, classes, 1))


def _fcn_head(channels: int, classes: int) -> nn.Sequential:
    convolution, norm, relu, _, classifier = FCNHead(channels, classes)
    # Without dropout, which would depend on the number of ranks; with statistics of all ranks.
    return nn.Sequential(convolution, BatchNorm(norm.num_features), relu, classifier)
