"""SimSiam (Chen and He, CVPR 2021, arXiv 2011.10566): a view predicts the other one.

    view 1 -> encoder, projection -> prediction --- p1
                                                    | cosine; no gradient into z2
    view 2 -> encoder, projection ----------------- z2

The loss is the negative cosine of p1 and z2, and of p2 and z1 (section 3, equations 1 to 4). Only
the stop-gradient keeps all embeddings from becoming equal (section 4.1): watch
embedding_deviation. Batch normalization uses the statistics of both views of the global batch,
where the published code normalizes each view by itself. As in the baseline of the paper, the
learning rate of the prediction head decays with all others (section 4.2).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.two_views import VIEWS, TwoViews, cosine_to_other_view
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.encoder import Encoder
from jigclu.models.perceptron import perceptron
from jigclu.ops import health
from jigclu.ops.normalize import pool
from jigclu.system import collectives
from jigclu.system.errors import check


class SimSiamOutputs(NamedTuple):
    """Outputs for the views of this rank, in the order of images.

    predictions: float32 [images * 2, embedding_channels], L2-normalized (p).
    projections: likewise (z).
    features: [images * 2, channels], of the encoder.
    """

    predictions: Tensor
    projections: Tensor
    features: Tensor


class SimSiamLosses(NamedTuple):
    """Scalar float32 [] of one rank: the mean over its images, in [-1, 1]."""

    loss: Tensor


class SimSiamNetwork(nn.Module):
    """An encoder with projection and prediction head (section 3, baseline settings).

    The projection has three layers, all of them normalized; as in the published code, the last
    normalization has no trained scale and shift. The prediction has a narrow hidden layer, and
    no normalization at its end.
    """

    def __init__(self, encoder: Encoder, embedding_channels: int, prediction_channels: int) -> None:
        super().__init__()
        channels = embedding_channels
        self.encoder = encoder
        self.projection = perceptron(encoder.channels, channels, channels, channels, bias=False)
        self.projection.append(BatchNorm(channels).requires_grad_(False))
        self.prediction = perceptron(channels, prediction_channels, channels, bias=True)

    def forward(self, images: Tensor) -> SimSiamOutputs:
        """Maps float [images * 2, 3, height, width] to `SimSiamOutputs`."""
        features = pool(self.encoder(images))
        projections = self.projection(features)
        predictions = self.prediction(projections)
        return SimSiamOutputs(
            functional.normalize(predictions.float(), dim=1),
            functional.normalize(projections.float(), dim=1),
            features,
        )


@dataclass(frozen=True, kw_only=True)
class SimSiam(TwoViews):
    """The method and its hyperparameters; gin/base/simsiam.gin binds the published values.

    Attributes:
      embedding_channels: of the hidden layers and the output of the projection head, and of the
        output of the prediction head.
      prediction_channels: of the hidden layer of the prediction head.
    """

    embedding_channels: int
    prediction_channels: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embedding_channels", "prediction_channels"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")

    @property
    def loss_may_rise(self) -> bool:
        """True: the targets are projections, which move."""
        return True

    def network(self, encoder: Encoder) -> SimSiamNetwork:
        """Adds the projection and the prediction head to an encoder."""
        return SimSiamNetwork(encoder, self.embedding_channels, self.prediction_channels)

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> SimSiamLosses:
        """Returns the symmetrized negative cosine (equation 4), the mean over this rank's images.

        Args:
          outputs: `SimSiamOutputs`.
          targets: none.
        """
        predictions, projections, _ = outputs
        return SimSiamLosses(-cosine_to_other_view(predictions, projections))

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Returns the health of projections and features; see `losses` for the arguments."""
        _, projections, features = (collectives.gather(values, dim=0) for values in outputs)
        return health.measure(projections.unflatten(0, (-1, VIEWS)), features)

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns the loss of predictions that do not depend on the views, and random retrieval.

        Equal embeddings have the least loss, so that only embedding_deviation shows a collapse.
        """
        return {"loss": 0.0, "retrieval": health.chance_retrieval(batch_size, VIEWS)}

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the loss of predictions that equal the projections of the other views."""
        return {"loss": -1.0}
