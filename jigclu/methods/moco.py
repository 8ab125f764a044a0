"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297): a view finds the other one in a queue of keys.

    view 1 -> encoder, projection ------------------- query
                    | EMA                               | cosines / temperature -> cross-entropy
    view 2 -> momentum encoder, momentum projection - key, queue of the keys of earlier batches

Momentum Contrast (He et al., CVPR 2020, arXiv 1911.05722) is the method: InfoNCE (section 3.1,
equation 1), a queue (section 3.2) and a momentum encoder (equation 2). Version 2 adds the
projection head of SimCLR, a stronger augmentation and a cosine schedule.

Batch normalization differs. The published code shuffles the images of the key encoder among GPUs
(section 3.3), because statistics of the 32 images of one GPU, shared by a query and its key, tell
which key to choose. Here the statistics are those of the global batch, without shuffling, on any
number of devices: those of 256 images and more vary less from batch to batch, and tell less. A run
that exploits them would show an accuracy near 1 beside a low retrieval. As in the paper, the queue
starts with random vectors, so that the loss rises while keys replace them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.two_views import VIEWS, TwoViews
from jigclu.models.embedding_queue import check_queue_size, replace_oldest
from jigclu.models.encoder import Encoder
from jigclu.models.momentum import follow, momentum_copy
from jigclu.models.projector import Projector
from jigclu.ops import health
from jigclu.ops.normalize import pool
from jigclu.system import collectives
from jigclu.system.errors import check


class MocoOutputs(NamedTuple):
    """Outputs for the images of this rank.

    queries: float32 [images, embedding_channels], L2-normalized, of the first views.
    keys: likewise, of the second views; without gradient.
    negatives: float32 [images, queue_size], cosines of the queries and the queue.
    features: [images, channels], of the encoder for the first views.
    """

    queries: Tensor
    keys: Tensor
    negatives: Tensor
    features: Tensor


class MocoLosses(NamedTuple):
    """Scalars float32 [] of one rank: means over its images.

    accuracy: share of queries whose own key is nearer than the whole queue.
    """

    loss: Tensor
    accuracy: Tensor


class MocoNetwork(Projector):
    """An encoder with projection head, their momentum copies, and the queue.

    queue: float32 [queue_size, embedding_channels], L2-normalized; random at first.
    """

    queue: Tensor

    def __init__(self, encoder: Encoder, embedding_channels: int, queue_size: int) -> None:
        super().__init__(encoder, embedding_channels)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)
        queue = torch.randn(queue_size, embedding_channels)
        self.register_buffer("queue", functional.normalize(queue, dim=1))

    def forward(self, images: Tensor) -> MocoOutputs:  # type: ignore[override]
        """Maps two views of every image, float [images * 2, 3, height, width], to `MocoOutputs`."""
        first, second = images.unflatten(0, (-1, VIEWS)).unbind(1)
        features = pool(self.encoder(first))
        queries = functional.normalize(self.projection(features).float(), dim=1)
        with torch.no_grad():
            keys = self.momentum_projection(pool(self.momentum_encoder(second)))
        # bfloat16 has 8 bits, too few for cosines that are divided by a temperature.
        with torch.autocast(images.device.type, enabled=False):
            negatives = queries @ self.queue.t()
        return MocoOutputs(queries, functional.normalize(keys.float(), dim=1), negatives, features)


@dataclass(frozen=True, kw_only=True)
class Moco(TwoViews):
    """The method and its hyperparameters; gin/base/moco.gin binds the published values.

    Attributes:
      embedding_channels: of the projection head.
      temperature: of cosines in the loss.
      queue_size: number of keys, a multiple of the global batch.
      momentum: of the momentum encoder, in [0, 1).
    """

    embedding_channels: int
    temperature: float
    queue_size: int
    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embedding_channels", "queue_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        temperature = self.temperature
        check(0 < temperature < math.inf, "temperature", temperature, "above 0, and finite")
        check(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1), usually 0.999")

    @property
    def loss_may_rise(self) -> bool:
        """True: keys are harder negatives than the random vectors that they replace at first."""
        return True

    def check_run(self, encoder: Encoder, epochs: float, batch_size: int, graphs: int) -> None:
        """Raises UserError unless batches fill the queue without a rest."""
        check_queue_size(self.queue_size, batch_size, "the batch_size")

    def network(self, encoder: Encoder) -> MocoNetwork:
        """Adds the projection head, momentum copies and the queue to an encoder."""
        return MocoNetwork(encoder, self.embedding_channels, self.queue_size)

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> MocoLosses:
        """Returns InfoNCE and accuracy, means over the images of this rank (equation 1).

        Args:
          outputs: `MocoOutputs`.
          targets: none.
        """
        queries, keys, negatives, _ = outputs
        positives = (queries * keys.detach()).sum(1, keepdim=True)
        logits = torch.cat([positives, negatives], 1) / self.temperature
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        accuracy = (positives[:, 0] > negatives.max(1).values).float().mean()
        return MocoLosses(functional.cross_entropy(logits, first), accuracy)

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Returns the health of queries, keys and features; see `losses` for the arguments.

        Queries and keys come from two networks. Hence retrieval is the share of queries that are
        nearer to their own key than to other keys of the batch, and embedding_deviation is that of
        the queries.
        """
        queries, keys, features = (
            collectives.gather(values, dim=0) for values in (outputs[0], outputs[1], outputs[3])
        )
        own = torch.arange(len(keys), device=keys.device)
        return health.measure(torch.stack([queries, keys], 1), features) | {
            "retrieval": ((queries @ keys.t()).argmax(1) == own).float().mean(),
            "embedding_deviation": health.deviation(queries),
        }

    def encoder_features(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Returns the features of this rank's first views, and the image of each."""
        features = outputs[-1]
        rows = torch.arange(len(features), device=features.device)
        return features, collectives.rank() * len(rows) + rows

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        """Moves the momentum encoder (equation 2), and replaces the oldest keys of the queue.

        The first step copies the encoder, whose weights `init_from` may have replaced.
        """
        assert isinstance(network, MocoNetwork)
        momentum = self.momentum if step > 0 else 0.0
        follow(network.momentum_encoder, network.encoder, momentum)
        follow(network.momentum_projection, network.projection, momentum)
        replace_oldest(network.queue, outputs[1], step)

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns the loss if all embeddings are equal, and the retrieval of random ones."""
        return {
            "loss": math.log(self.queue_size + 1),
            "retrieval": 1 / batch_size,
        }

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the loss if a query equals its key, and keys are as far apart as possible."""
        distance = (1 + 1 / self.queue_size) / self.temperature
        return {"loss": math.log1p(self.queue_size * math.exp(-distance))}
