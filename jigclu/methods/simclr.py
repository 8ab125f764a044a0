"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): two views of an image find each other.

Two random crops of every image are augmented independently and encoded. The loss NT-Xent
(section 2.1, equation 1) asks each view for the other view of its image among all other
views of the global batch. SimCLR encodes every image twice, and is here as a baseline.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from jigclu.methods.two_views import VIEWS, TwoViews
from jigclu.models.encoder import Encoder
from jigclu.models.projector import Projector
from jigclu.ops import health, losses
from jigclu.system import collectives
from jigclu.system.errors import check


class SimClrLosses(NamedTuple):
    """Scalar float32 [] of one rank: the mean over its views."""

    loss: Tensor


@dataclass(frozen=True, kw_only=True)
class SimClr(TwoViews):
    """The method and its hyperparameters; gin/base/simclr.gin binds the published values.

    Attributes:
      embedding_channels: of the projection head.
      temperature: of cosines in the loss.
    """

    embedding_channels: int
    temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.embedding_channels
        check(channels >= 1, "embedding_channels", channels, "1 or more")
        temperature = self.temperature
        check(0 < temperature < math.inf, "temperature", temperature, "above 0, and finite")

    def network(self, encoder: Encoder) -> Projector:
        """Adds the projection head to an encoder."""
        return Projector(encoder, self.embedding_channels)

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> SimClrLosses:
        """Returns NT-Xent, the mean over the views of this rank (equation 1).

        NT-Xent is the clustering loss of jigsaw clustering for two crops per image, without
        its factor temperature / base_temperature.

        Args:
          outputs: of `Projector`: the embeddings of this rank's views, in the order of images.
          targets: none.
        """
        embeddings = outputs[0]
        images = len(embeddings) // VIEWS
        gathered = collectives.gather_with_gradient(embeddings).unflatten(0, (-1, VIEWS))
        first = collectives.rank() * images
        return SimClrLosses(
            losses.clustering_loss(gathered, first, images, self.temperature, self.temperature)
        )

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Returns the health of embeddings and features; see `losses` for the arguments."""
        embeddings, features = (collectives.gather(values, dim=0) for values in outputs)
        return health.measure(embeddings.unflatten(0, (-1, VIEWS)), features)

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns the loss if all embeddings are equal, and the retrieval of random ones."""
        return {
            "loss": math.log(VIEWS * batch_size - 1),
            "retrieval": health.chance_retrieval(batch_size, VIEWS),
        }

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the loss if equal embeddings of an image are as far apart as possible."""
        temperature = self.temperature
        return {"loss": losses.least_clustering_loss(batch_size, VIEWS, temperature, temperature)}
