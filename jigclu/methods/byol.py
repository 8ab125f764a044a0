"""BYOL (Grill et al., NeurIPS 2020, arXiv 2006.07733): a view predicts a slow network's other one.

    view 1 -> encoder, projection -> prediction ------------- q1
                    | EMA                                     | squared distance; no gradient to z2
    view 2 -> momentum encoder, momentum projection --------- z2

The loss is the squared distance of the L2-normalized q1 and z2, plus that of q2 and z1 (section
3.1, equation 2). The target network, which computes z, is an exponential moving average of the
online network, whose momentum grows to 1 in the course of the run (section 3.3).

Differences from the paper: both views have the same augmentation, without solarization (the paper
blurs almost all first views and a tenth of the second ones), and batch normalization uses the
statistics of both views of the global batch, where the published code normalizes each view by
itself.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.two_views import VIEWS, TwoViews, cosine_to_other_view
from jigclu.models.encoder import Encoder
from jigclu.models.momentum import follow, momentum_copy
from jigclu.models.perceptron import perceptron
from jigclu.ops import health
from jigclu.ops.normalize import pool
from jigclu.system import collectives
from jigclu.system.errors import check


class ByolOutputs(NamedTuple):
    """Outputs for the views of this rank, in the order of images.

    predictions: float32 [images * 2, embedding_channels], L2-normalized, of the online network.
    targets: likewise, the projections of the target network; without gradient.
    features: [images * 2, channels], of the encoder.
    """

    predictions: Tensor
    targets: Tensor
    features: Tensor


class ByolLosses(NamedTuple):
    """Scalar float32 [] of one rank: the mean over its images, in [0, 8]."""

    loss: Tensor


class ByolNetwork(nn.Module):
    """The online network, and the momentum copies of encoder and projection (section 3.3)."""

    def __init__(self, encoder: Encoder, hidden_channels: int, embedding_channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        sizes = hidden_channels, embedding_channels
        self.projection = perceptron(encoder.channels, *sizes, bias=False)
        self.prediction = perceptron(embedding_channels, *sizes, bias=False)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.momentum_projection = momentum_copy(self.projection)

    def forward(self, images: Tensor) -> ByolOutputs:
        """Maps float [images * 2, 3, height, width] to `ByolOutputs`."""
        features = pool(self.encoder(images))
        predictions = self.prediction(self.projection(features))
        with torch.no_grad():
            targets = self.momentum_projection(pool(self.momentum_encoder(images)))
        return ByolOutputs(
            functional.normalize(predictions.float(), dim=1),
            functional.normalize(targets.float(), dim=1),
            features,
        )


@dataclass(frozen=True, kw_only=True)
class Byol(TwoViews):
    """The method and its hyperparameters; gin/base/byol.gin binds the published values.

    Attributes:
      hidden_channels: of the hidden layer of both heads.
      embedding_channels: of the output of both heads.
      momentum: of the target network in the first step, in [0, 1].
    """

    hidden_channels: int
    embedding_channels: int
    momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_channels", "embedding_channels"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(0 <= self.momentum <= 1, "momentum", self.momentum, "in [0, 1], usually 0.996")

    @property
    def loss_may_rise(self) -> bool:
        """True: the targets are those of a network that changes."""
        return True

    def network(self, encoder: Encoder) -> ByolNetwork:
        """Adds the heads and the target network to an encoder."""
        return ByolNetwork(encoder, self.hidden_channels, self.embedding_channels)

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> ByolLosses:
        """Returns the symmetrized squared distance (equation 2), the mean over this rank's images.

        Of vectors of length 1, the squared distance is 2 - 2 * cosine.

        Args:
          outputs: `ByolOutputs`.
          targets: none.
        """
        predictions, projections, _ = outputs
        return ByolLosses(VIEWS * (2 - 2 * cosine_to_other_view(predictions, projections)))

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Returns the health of target projections and features; see `losses`."""
        _, projections, features = (collectives.gather(values, dim=0) for values in outputs)
        return health.measure(projections.unflatten(0, (-1, VIEWS)), features)

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        """Moves the target network towards the online network (equation 1).

        The first step copies the online network, whose weights `init_from` may have replaced.
        """
        assert isinstance(network, ByolNetwork)
        momentum = self.momentum_at(step, total_steps) if step > 0 else 0.0
        follow(network.momentum_encoder, network.encoder, momentum)
        follow(network.momentum_projection, network.projection, momentum)

    def momentum_at(self, step: int, total_steps: int) -> float:
        """Returns 1 - (1 - momentum) * (cos(pi * step / total_steps) + 1) / 2 (section 3.3)."""
        return 1 - (1 - self.momentum) * (math.cos(math.pi * step / total_steps) + 1) / 2

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns the loss of predictions that do not depend on the views, and random retrieval.

        Equal embeddings have the least loss, so that only embedding_deviation shows a collapse.
        """
        return {"loss": 4.0, "retrieval": health.chance_retrieval(batch_size, VIEWS)}

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the least possible values of losses, where these are not 0: none."""
        return {}
