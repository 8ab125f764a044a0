"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): two views of an image find each other.

Two random crops of every image are augmented independently and encoded. The loss NT-Xent
(section 2.1, equation 1) asks each view for the other view of its image among all other
views of the global batch. SimCLR encodes every image twice, and is here as a baseline.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jigclu.data.crops import CropDataset
from jigclu.data.sources import Source
from jigclu.methods.method import StepInputs
from jigclu.models.encoder import Encoder
from jigclu.models.projector import Projector
from jigclu.ops import health, losses
from jigclu.ops.augment import Augmentation, draw_augmentation, select_rows
from jigclu.ops.crops import check_crop, two_views
from jigclu.ops.pictures import SHOWN, image_grid
from jigclu.system import collectives
from jigclu.system.errors import check

VIEWS = 2


class SimClrLosses(NamedTuple):
    """Scalar float32 [] of one rank: the mean over its views."""

    loss: Tensor


@dataclass(frozen=True, kw_only=True)
class SimClr:
    """The method and its hyperparameters; gin/base/simclr.gin binds the published values.

    Attributes:
      view_size: side of a view in pixels.
      crop_scale: least and most share of the image's area that a view shows.
      crop_ratio: least and most width / height of the crop.
      scaled_decoding: whether large JPEG images are shrunk while decoding.
      augmentation: of each view.
      embedding_channels: of the projection head.
      temperature: of cosines in the loss.
    """

    view_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    scaled_decoding: bool
    augmentation: Augmentation
    embedding_channels: int
    temperature: float

    def __post_init__(self) -> None:
        check(self.view_size >= 1, "view_size", self.view_size, "1 pixel or more")
        check_crop(self.crop_scale, self.crop_ratio)
        channels = self.embedding_channels
        check(channels >= 1, "embedding_channels", channels, "1 or more")
        temperature = self.temperature
        check(0 < temperature < math.inf, "temperature", temperature, "above 0, and finite")

    @property
    def crops_per_image(self) -> int:
        """Number of views of an image."""
        return VIEWS

    def check_run(self, encoder: Encoder, epochs: int, compiles: bool) -> None:
        """Accepts every run: views of any size can be encoded."""

    def summary(self, images: int) -> str:
        """Returns one line of the plan: number and size of the views."""
        return f"views: {VIEWS * images} of {self.view_size}x{self.view_size} pixels"

    def dataset(self, source: Source, seed: int, batch_size: int) -> CropDataset:
        """Returns two random crops of every image of a source."""
        return CropDataset(
            source=source,
            seed=seed,
            batch_size=batch_size,
            draw=partial(two_views, scale=self.crop_scale, ratio=self.crop_ratio),
            size=self.view_size,
            smaller_sizes=(),
            least_side=1,
            scaled_decoding=self.scaled_decoding,
        )

    def network(self, encoder: Encoder) -> Projector:
        """Adds the projection head to an encoder."""
        return Projector(encoder, self.embedding_channels)

    def step_inputs(self, crops: Tensor, seed: int, step: int) -> StepInputs:
        """Keeps the views in the order of images; the losses need no targets."""
        own = len(crops) * VIEWS
        drawn = draw_augmentation(self.augmentation, seed, step, own * collectives.world_size())
        rows = torch.arange(collectives.rank() * own, (collectives.rank() + 1) * own)
        return StepInputs(
            crops=crops.flatten(0, 1),
            augmentation=select_rows(drawn, rows, crops.device),
            targets=(),
        )

    def network_inputs(self, crops: Tensor) -> Tensor:
        """Returns the views as they are."""
        return crops

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

    def encoder_features(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Returns the features of this rank's views, and the image of each."""
        rows = torch.arange(len(outputs[1]), device=outputs[1].device)
        return outputs[1], (collectives.rank() * len(rows) + rows) // VIEWS

    def update_state(self, network: nn.Module) -> None:
        """Does nothing: the method has no state."""

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

    def draw(self, inputs: StepInputs) -> Tensor:
        """Draws the first views as the network sees them: uint8 [3, height, width]."""
        drawn = tuple(values[:SHOWN] for values in inputs.augmentation)
        views = self.augmentation(inputs.crops[:SHOWN], drawn)
        return image_grid(views, self.augmentation.mean, self.augmentation.std)
