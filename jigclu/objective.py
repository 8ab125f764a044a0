"""What pre-training minimises: from the bytes of patches to the two losses."""

import math
from typing import NamedTuple

from torch import Tensor

from jigclu import collectives, jigsaw, losses
from jigclu.augment import AugmentationParameters, AugmentationSettings, augment
from jigclu.errors import UserError
from jigclu.model import JigClu
from jigclu.steps import Forward


class Objective(NamedTuple):
    """What is minimised, and how patches are augmented on the way.

    clustering_weight and location_weight multiply the two losses (published: 1
    and 1); temperature and base_temperature are those of `losses.clustering_loss`.
    """

    augmentation: AugmentationSettings
    temperature: float
    base_temperature: float
    clustering_weight: float
    location_weight: float


class StepInputs(NamedTuple):
    """What one rank needs for one step, on its device.

    slots: uint8 [local_batch * grid**2, 3, size, size], the patches that its montages show.
    augmentation: a row a slot.
    permutation: int64 [batch * grid**2], of the global batch: slot s shows permutation[s].
    """

    slots: Tensor
    augmentation: AugmentationParameters
    permutation: Tensor


class StepLosses(NamedTuple):
    """Scalars [] of one rank: the means over its slots."""

    loss: Tensor
    clustering_loss: Tensor
    location_loss: Tensor
    location_accuracy: Tensor


def check_objective(objective: Objective) -> None:
    """Raises UserError for a value out of range."""
    for name in ("temperature", "base_temperature"):
        value = getattr(objective, name)
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be above 0, and finite")
    weights = (objective.clustering_weight, objective.location_weight)
    if not all(0 <= weight < math.inf for weight in weights) or max(weights) == 0:
        raise UserError(
            f"clustering_weight, location_weight are {weights}; they must be 0 or more, not both 0"
        )


class JigsawForward(Forward):
    """Augment, stitch, encode, compare: from the bytes of patches to the losses."""

    def __init__(
        self, model: JigClu, objective: Objective, precision: str, channels_last: bool
    ) -> None:
        """As `Forward`; raises UserError for an objective out of range, too."""
        super().__init__(model, precision, channels_last)
        check_objective(objective)
        self.objective = objective
        self.grid = model.grid

    def forward(
        self, slots: Tensor, augmentation: AugmentationParameters, permutation: Tensor
    ) -> StepLosses:
        """Returns this rank's losses; for the arguments see `StepInputs`."""
        objective, grid = self.objective, self.grid
        patches = augment(slots, augmentation, objective.augmentation)
        montages = jigsaw.stitch_montages(patches, grid)
        embeddings, location_logits = self.apply_model(montages)
        embeddings = collectives.gather_with_gradient(embeddings)
        first, count = collectives.rank() * len(montages), len(montages)
        clustering = losses.clustering_loss(
            losses.embeddings_by_image(embeddings, permutation, grid),
            first,
            count,
            objective.temperature,
            objective.base_temperature,
        )
        own = permutation[first * grid**2 : (first + count) * grid**2]
        batch_size = len(permutation) // grid**2
        location, accuracy = losses.location_loss(
            location_logits.float(), jigsaw.patch_of(own, batch_size)
        )
        loss = objective.clustering_weight * clustering + objective.location_weight * location
        return StepLosses(loss, clustering, location, accuracy)
