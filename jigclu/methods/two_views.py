"""What all methods of two views share: two random crops of every image, augmented independently."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from jigclu.data.crops import CropDataset
from jigclu.data.sources import Source
from jigclu.methods.method import StepInputs
from jigclu.models.encoder import Encoder
from jigclu.ops.augment import Augmentation, draw_augmentation, select_rows
from jigclu.ops.crops import check_crop, two_views
from jigclu.ops.pictures import SHOWN, image_grid
from jigclu.system import collectives
from jigclu.system.errors import check

VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """Base of methods; a subclass adds its network, losses and measures.

    Attributes:
      view_size: side of a view in pixels.
      crop_scale: least and most share of the image's area that a view shows.
      crop_ratio: least and most width / height of the crop.
      scaled_decoding: whether large JPEG images are shrunk while decoding.
      augmentation: of each view.
    """

    view_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    scaled_decoding: bool
    augmentation: Augmentation

    def __post_init__(self) -> None:
        check(self.view_size >= 1, "view_size", self.view_size, "1 pixel or more")
        check_crop(self.crop_scale, self.crop_ratio)

    @property
    def crops_per_image(self) -> int:
        """Number of views of an image."""
        return VIEWS

    @property
    def loss_may_rise(self) -> bool:
        """False: the loss compares embeddings of one network."""
        return False

    def check_run(self, encoder: Encoder, epochs: float, batch_size: int, graphs: int) -> None:
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

    def encoder_features(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Returns the features of this rank's views, the last output, and the image of each."""
        features = outputs[-1]
        rows = torch.arange(len(features), device=features.device)
        return features, (collectives.rank() * len(rows) + rows) // VIEWS

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        """Does nothing: the method has no state."""

    def draw(self, inputs: StepInputs) -> Tensor:
        """Draws the first views as the network sees them: uint8 [3, height, width]."""
        drawn = tuple(values[:SHOWN] for values in inputs.augmentation)
        views = self.augmentation(inputs.crops[:SHOWN], drawn)
        return image_grid(views, self.augmentation.mean, self.augmentation.std)


def cosine_to_other_view(predictions: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cosine of each view's prediction and the target of the other view.

    Args:
      predictions: float32 [images * 2, channels], L2-normalized, in the order of images.
      targets: likewise; they receive no gradient (stop-gradient).

    Returns:
      float32 [], in [-1, 1].
    """
    others = targets.detach().unflatten(0, (-1, VIEWS)).flip(1).flatten(0, 1)
    return (predictions * others).sum(1).mean()
