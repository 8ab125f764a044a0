"""An encoder with the projection head of SimCLR."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from jigclu.models.encoder import Encoder
from jigclu.ops.normalize import pool


class Projections(NamedTuple):
    """Embeddings of images, and what they are computed from.

    embeddings: float32 [images, embedding_channels], L2-normalized.
    features: [images, channels], of the encoder.
    """

    embeddings: Tensor
    features: Tensor


class Projector(nn.Module):
    """Images to embeddings: encoder, average pooling, and a two-layer perceptron.

    The head is that of Chen et al., ICML 2020, section 2.1: W2 ReLU(W1 h), hidden layer as
    wide as the features.
    """

    def __init__(self, encoder: Encoder, embedding_channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Sequential(
            nn.Linear(encoder.channels, encoder.channels),
            nn.ReLU(),
            nn.Linear(encoder.channels, embedding_channels),
        )

    def forward(self, images: Tensor) -> Projections:
        """Maps float [images, 3, height, width] to embeddings."""
        features = pool(self.encoder(images))
        embeddings = self.projection(features)
        # bfloat16 has 8 bits, too few for cosines that are divided by a temperature.
        return Projections(functional.normalize(embeddings.float(), dim=1), features)
