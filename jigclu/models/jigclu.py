"""The network of jigsaw clustering: encoder, clustering head, location head."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from jigclu.models.encoder import Encoder
from jigclu.ops.jigsaw import split_features


class Outputs(NamedTuple):
    """Predictions for every slot of the montages.

    embeddings: float32 [montages * grid**2, channels], L2-normalized.
    location_logits: [montages * grid**2, grid**2].
    features: [montages * grid**2, channels], of the encoder.
    """

    embeddings: Tensor
    location_logits: Tensor
    features: Tensor


class JigClu(nn.Module):
    """Maps montages to embeddings and locations (Chen et al., CVPR 2021, section 3.1, figure 2).

    The heads have the names of the published checkpoints: fc_clu.0, fc_clu.2, fc_loc.
    """

    def __init__(
        self, encoder: Encoder, grid: int, pooling_map: int | None, embedding_channels: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pooling_map = pooling_map
        self.encoder = encoder
        self.fc_clu = nn.Sequential(
            nn.Linear(encoder.channels, encoder.channels),
            nn.ReLU(),
            nn.Linear(encoder.channels, embedding_channels),
        )
        self.fc_loc = nn.Linear(encoder.channels, grid**2)

    def forward(self, montages: Tensor) -> Outputs:
        """Maps float montages [montages, 3, height, width] to one output per slot."""
        features = split_features(self.encoder(montages), self.grid, self.pooling_map)
        # bfloat16 has 8 bits, too few for cosines that are divided by a temperature.
        embeddings = functional.normalize(self.fc_clu(features).float(), dim=1)
        return Outputs(embeddings, self.fc_loc(features), features)
