"""The training step: patches in, one forward, two losses, one update.

`PretrainStep` composes the pure functions below it. Forward and update are
compiled whole; the update writes its results into the tensors that
DistributedDataParallel holds, the one impure place.
"""

import inspect
import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jigclu import collectives, jigsaw, losses
from jigclu.augment import AugmentationParameters, AugmentationSettings, augment
from jigclu.errors import UserError
from jigclu.model import JigClu
from jigclu.state import TrainState
from jigclu.update import LossScaling, Optimizer, next_loss_scale, update

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Statistics are of the global batch already: nothing to broadcast. torch 2.15 renamed the option.
_NO_BROADCAST: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_UNSCALED = LossScaling(initial=1.0, growth=1.0, backoff=1.0, interval=1)


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


class JigsawForward(nn.Module):
    """Augment, stitch, encode, compare: from the bytes of patches to the losses."""

    def __init__(
        self, model: JigClu, objective: Objective, precision: torch.dtype, channels_last: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(
        self, slots: Tensor, augmentation: AugmentationParameters, permutation: Tensor
    ) -> StepLosses:
        """Returns this rank's losses; for the arguments see `StepInputs`."""
        objective, grid = self.objective, self.model.grid
        patches = augment(slots, augmentation, objective.augmentation)
        montages = jigsaw.stitch_montages(patches, grid).contiguous(
            memory_format=self.memory_format
        )
        with torch.autocast(
            montages.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            embeddings, location_logits = self.model(montages)
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


def check_precision(precision: str) -> None:
    """Raises UserError unless it is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; it must be one of {list(PRECISIONS)}")


class PretrainStep:
    """One step of training, on any number of ranks: (state, inputs) to (state, metrics).

    Every rank must build it and call it alike. Nothing in a step waits for the device.
    """

    def __init__(
        self,
        model: JigClu,
        objective: Objective,
        optimizer: Optimizer,
        loss_scaling: LossScaling,
        precision: str,
        channels_last: bool,
        compile: bool,
        device: torch.device,
    ) -> None:
        """Moves the model to the device; compilation itself happens in the first step.

        Args:
          model: with initial weights, the same on every rank.
          objective: what to minimise.
          optimizer: `update.sgd` or `update.lars` with their settings bound.
          loss_scaling: of float16; the others need none.
          precision: "float32", or of autocast: "bfloat16" or "float16".
          channels_last: memory format of images and weights.
          compile: by torch.compile, forward and update each as one graph.
          device: where to train.

        Raises:
          UserError: an unknown precision, or an objective out of range.
        """
        check_objective(objective)
        if precision not in PRECISIONS:
            raise UserError(
                f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        self._scaling = loss_scaling if precision == "float16" else _UNSCALED
        self._optimizer = optimizer
        self.model = model.to(device)
        forward = JigsawForward(self.model, objective, PRECISIONS[precision], channels_last)
        self._advance = self._take_step
        if compile:
            # Compiled before it is wrapped: compiling DistributedDataParallel itself does nothing.
            forward.compile(fullgraph=True, dynamic=False)
            self._advance = torch.compile(self._take_step, fullgraph=True, dynamic=False)
        self._forward: nn.Module = forward
        if collectives.world_size() > 1:
            self._forward = DistributedDataParallel(
                forward, gradient_as_bucket_view=True, **_NO_BROADCAST
            )
        self._device = device

    def initial_state(self) -> TrainState:
        """Returns the state before the first step; its tensors are the model's own."""
        parameters = dict(self.model.named_parameters())
        return TrainState(
            step=0,
            parameters={name: value.detach() for name, value in parameters.items()},
            buffers=dict(self.model.named_buffers()),
            momentum={name: torch.zeros_like(value) for name, value in parameters.items()},
            loss_scale=torch.tensor(self._scaling.initial, device=self._device),
            good_steps=torch.tensor(0, device=self._device),
        )

    def __call__(
        self, state: TrainState, inputs: StepInputs, learning_rate: float
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Takes one step. Parameters, buffers and momentum change in place.

        Args:
          state: of `initial_state` or an earlier step.
          inputs: of this rank.
          learning_rate: of this step.

        Returns:
          The next state, and metrics, each float32 [], equal on all ranks: the
          means of `StepLosses` over the global batch, gradient_norm and
          learning_rate; in float16 also the new loss_scale and skipped_steps, 1
          where a gradient overflowed, whose norm then counts as 0.
        """
        losses_here: StepLosses = self._forward(*inputs)
        (losses_here.loss * state.loss_scale).backward()
        # A tensor: another number each step would compile each step. Filling waits for nothing.
        rate = torch.full((), learning_rate, device=self._device)
        parameters = list(self.model.parameters())
        with torch.no_grad():
            gradients = [value.grad for value in parameters if value.grad is not None]
            loss_scale, good_steps, norm, finite = self._advance(
                [parameter.detach() for parameter in parameters],
                gradients,
                list(state.momentum.values()),
                rate,
                state.loss_scale,
                state.good_steps,
            )
            for parameter in parameters:
                parameter.grad = None
            metrics = _mean_over_ranks(losses_here)
            metrics |= {"gradient_norm": norm, "learning_rate": rate}
            if self._scaling is not _UNSCALED:
                metrics |= {"loss_scale": loss_scale, "skipped_steps": 1.0 - finite.float()}
        state = state._replace(step=state.step + 1, loss_scale=loss_scale, good_steps=good_steps)
        return state, metrics

    def _take_step(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        momenta: list[Tensor],
        learning_rate: Tensor,
        loss_scale: Tensor,
        good_steps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Updates parameters and momenta in place; returns scale, good steps, norm, finite."""
        new_parameters, new_momenta, finite = update(
            parameters, gradients, momenta, learning_rate, loss_scale, self._optimizer
        )
        norm = torch.stack(torch._foreach_norm(gradients)).norm() / loss_scale
        if self._scaling is not _UNSCALED:
            # An overflow is an event that the scale answers; else it must be seen as it is.
            norm = torch.where(finite, norm, 0.0)
        torch._foreach_copy_(parameters, new_parameters)
        torch._foreach_copy_(momenta, new_momenta)
        return *next_loss_scale(loss_scale, good_steps, finite, self._scaling), norm, finite


def _mean_over_ranks(values: StepLosses) -> dict[str, Tensor]:
    stacked = torch.stack([value.detach() for value in values])
    if collectives.world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= collectives.world_size()
    return dict(zip(values._fields, stacked.unbind(), strict=True))
