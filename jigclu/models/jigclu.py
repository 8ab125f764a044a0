"""The network of jigsaw clustering: encoder, clustering head, location head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jigclu.models.encoder import Encoder
from jigclu.models.perceptron import perceptron
from jigclu.ops.jigsaw import split_features
from jigclu.ops.losses import log_sum_of_queue


class Outputs(NamedTuple):
    """Predictions for every slot of the montages.

    embeddings: float32 [montages * grid**2, channels], L2-normalized.
    location_logits: [montages * grid**2, grid**2].
    features: [montages * grid**2, channels], of the encoder.
    """

    embeddings: Tensor
    location_logits: Tensor
    features: Tensor


class QueuedOutputs(NamedTuple):
    """`Outputs`, and the similarity of each embedding to the queue.

    queue_sums: float32 [montages * grid**2], see `log_sum_of_queue`.
    """

    embeddings: Tensor
    location_logits: Tensor
    features: Tensor
    queue_sums: Tensor


class JigClu(nn.Module):
    """Maps montages to embeddings and locations (Chen et al., CVPR 2021, section 3.1, figure 2).

    The heads have the names of the published checkpoints: fc_clu.0, fc_clu.2, fc_loc.
    """

    def __init__(
        self,
        encoder: Encoder,
        grid: int,
        pooling_map: int | None,
        embedding_channels: int,
        projection_layers: int = 2,
        projection_norm: bool = False,
    ) -> None:
        """Adds heads to an encoder; see `Jigsaw` for the settings, whose defaults are published."""
        super().__init__()
        self.grid = grid
        self.pooling_map = pooling_map
        self.encoder = encoder
        widths = [encoder.channels] * projection_layers
        self.fc_clu = perceptron(*widths, embedding_channels, bias=True, norm=projection_norm)
        self.fc_loc = nn.Linear(encoder.channels, grid**2)

    def forward(self, montages: Tensor, single: bool = False) -> Outputs:
        """Maps float montages [montages, 3, height, width] to one output per slot.

        If they are single, montages are patches [montages * grid**2, 3, height, width], in the
        order of slots, and features are averages over whole maps.
        """
        grid, pooling_map = (1, None) if single else (self.grid, self.pooling_map)
        features = split_features(self.encoder(montages), grid, pooling_map)
        # bfloat16 has 8 bits, too few for cosines that are divided by a temperature.
        embeddings = functional.normalize(self.fc_clu(features).float(), dim=1)
        return Outputs(embeddings, self.fc_loc(features), features)


class QueuedJigClu(JigClu):
    """`JigClu` with a queue of patch embeddings of earlier batches, which are further negatives.

    queue: float32 [queue_size, embedding_channels], L2-normalized. Zeros at first, which are empty
      entries: random vectors would be negatives that no image has.
    """

    queue: Tensor

    def __init__(
        self,
        encoder: Encoder,
        grid: int,
        pooling_map: int | None,
        embedding_channels: int,
        projection_layers: int,
        projection_norm: bool,
        queue_size: int,
        temperature: float,
    ) -> None:
        super().__init__(
            encoder, grid, pooling_map, embedding_channels, projection_layers, projection_norm
        )
        self.temperature = temperature
        self.register_buffer("queue", torch.zeros(queue_size, embedding_channels))

    def forward(  # type: ignore[override]
        self, montages: Tensor, single: bool = False
    ) -> QueuedOutputs:
        """Maps montages or single patches to one output per slot, see `JigClu.forward`.

        Sums instead of cosines leave the network, so that no [slots, queue_size] need be kept.
        """
        outputs = super().forward(montages, single)
        with torch.autocast(montages.device.type, enabled=False):
            sums = log_sum_of_queue(outputs.embeddings, self.queue, self.temperature)
        return QueuedOutputs(*outputs, sums)
