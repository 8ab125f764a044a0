"""What pre-training minimizes: from the bytes of patches to the two losses."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from jigclu.methods.forward import Forward
from jigclu.models.jigclu import JigClu, Outputs
from jigclu.ops import jigsaw, losses
from jigclu.ops.augment import AugmentationParameters, AugmentationSettings, augment
from jigclu.ops.recompute import recompute
from jigclu.system import collectives
from jigclu.system.errors import UserError


class Objective(NamedTuple):
    """What is minimized, and how patches are augmented on the way.

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
        self,
        model: JigClu,
        objective: Objective,
        precision: str,
        channels_last: bool,
        micro_batch_size: int | None,
    ) -> None:
        """As `Forward`; raises UserError for an objective out of range, too.

        Args:
          micro_batch_size: montages that the encoder sees at once; None: all. The losses
            are over all montages in any case, their gradients exact; the statistics of
            batch normalization are those of so many montages, of all ranks.
        """
        super().__init__(model, precision, channels_last)
        check_objective(objective)
        self.objective = objective
        self.grid = model.grid
        self._micro_batch_size = micro_batch_size
        self._encode: Callable[..., Outputs] = self._encoded
        self._compare: Callable[..., StepLosses] = self._compared

    def compile_graphs(self) -> None:
        """As `Forward`; of pieces and of what follows them a graph each."""
        if self._micro_batch_size is None:
            super().compile_graphs()
            return
        self._encode = torch.compile(self._encoded, fullgraph=True, dynamic=False)
        self._compare = torch.compile(self._compared, fullgraph=True, dynamic=False)

    def forward(
        self, slots: Tensor, augmentation: AugmentationParameters, permutation: Tensor
    ) -> StepLosses:
        """Returns this rank's losses; for the arguments see `StepInputs`."""
        if self._micro_batch_size is None:
            return self._compare(*self._encode(slots, augmentation), permutation)
        rows = self._micro_batch_size * self.grid**2
        outputs = [
            recompute(self._encode, self.model, piece, AugmentationParameters(*drawn))
            for piece, *drawn in zip(
                slots.split(rows), *(values.split(rows) for values in augmentation), strict=True
            )
        ]
        return self._compare(*map(torch.cat, zip(*outputs, strict=True)), permutation)

    def _encoded(self, slots: Tensor, augmentation: AugmentationParameters) -> Outputs:
        patches = augment(slots, augmentation, self.objective.augmentation)
        outputs: Outputs = self.apply_model(jigsaw.stitch_montages(patches, self.grid))
        return outputs

    def _compared(
        self, embeddings: Tensor, location_logits: Tensor, permutation: Tensor
    ) -> StepLosses:
        return jigsaw_losses(embeddings, location_logits, permutation, self.grid, self.objective)


def jigsaw_losses(
    embeddings: Tensor,
    location_logits: Tensor,
    permutation: Tensor,
    grid: int,
    objective: Objective,
) -> StepLosses:
    """Returns the two losses of this rank's slots, and their weighted sum.

    Args:
      embeddings: float32 [local_batch * grid**2, channels], L2-normalized, of this rank;
        those of the other ranks are gathered, with their gradient.
      location_logits: [local_batch * grid**2, grid**2].
      permutation: int64 [batch * grid**2], of the global batch: slot s shows permutation[s].
      grid: patches per side.
      objective: temperatures and weights.
    """
    slots = len(embeddings)
    embeddings = collectives.gather_with_gradient(embeddings)
    first, count = collectives.rank() * slots // grid**2, slots // grid**2
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
        location_logits.float(), jigsaw.patch_locations(own, batch_size)
    )
    loss = objective.clustering_weight * clustering + objective.location_weight * location
    return StepLosses(loss, clustering, location, accuracy)
