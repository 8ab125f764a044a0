"""The training step: forward pass, gradients averaged over all ranks, parameter update.

Forward pass and update are compiled as one graph each. The only side effect is the update, which
writes into the tensors that DistributedDataParallel holds.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jigclu.methods.forward import Forward
from jigclu.ops.optim import LossScaling, Moments, Optimizer, next_loss_scale, update, update_where
from jigclu.system import collectives
from jigclu.training.state import TrainState

# Buffers are equal on all ranks already: their statistics are of the global batch.
# torch 2.15 renamed the option.
_NO_BROADCAST: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_UNSCALED = LossScaling(initial=1.0, growth=1.0, backoff=0.5, interval=1)


class TrainingStep:
    """A training step on any number of ranks: (state, inputs) to (state, metrics).

    Every rank must build and call it in the same way. Nothing in a step waits for the device.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: Optimizer,
        loss_scaling: LossScaling,
        use_compile: bool,
        device: torch.device,
    ) -> None:
        """Moves the network to the device; compilation itself happens in the first step.

        Args:
          forward: the forward pass to the losses.
          optimizer: of the trainable parameters.
          loss_scaling: dynamic loss scale, used in float16 only.
          use_compile: whether torch.compile compiles forward pass and update.
          device: of this rank.
        """
        self._scaling = loss_scaling if forward.precision == torch.float16 else _UNSCALED
        self._optimizer = optimizer
        self._own_forward = forward
        self.network = forward.network.to(device)
        self._advance = self._update
        if use_compile:
            # Before wrapping, because compiling DistributedDataParallel itself has no effect.
            forward.compile_graphs()
            self._advance = torch.compile(self._update, fullgraph=True, dynamic=False)
        self._forward: nn.Module = forward
        if collectives.world_size() > 1:
            self._forward = DistributedDataParallel(
                forward, gradient_as_bucket_view=True, **_NO_BROADCAST
            )
        self._device = device

    def initial_state(self) -> TrainState:
        """Returns the state before the first step; its tensors are those of the network.

        Parameters without gradient, such as those of a momentum teacher, count as buffers.
        """
        named = dict(self.network.named_parameters())
        trained = {name: value.detach() for name, value in named.items() if value.requires_grad}
        frozen: dict[str, Tensor] = {
            name: value for name, value in named.items() if not value.requires_grad
        }
        return TrainState(
            step=0,
            parameters=trained,
            buffers=dict(self.network.named_buffers()) | frozen,
            moments={
                moment: {name: torch.zeros_like(value) for name, value in trained.items()}
                for moment in self._optimizer.moment_names
            },
            updates=torch.tensor(0, device=self._device),
            loss_scale=torch.tensor(self._scaling.initial, device=self._device),
            good_steps=torch.tensor(0, device=self._device),
        )

    def __call__(
        self, state: TrainState, inputs: tuple[Any, ...], learning_rate: float
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Takes one step. Parameters, buffers and moments change in place.

        Args:
          state: of `initial_state` or an earlier step.
          inputs: arguments of the forward pass, of this rank.
          learning_rate: of this step.

        Returns:
          The next state, and metrics float32 [] that are equal on all ranks: the losses of
          the forward pass as means over the global batch, gradient_norm and learning_rate.
          In float16 also the new loss_scale, and skipped_steps: 1 if a gradient overflowed,
          whose norm then counts as 0.
        """
        losses = self._forward(*inputs)
        (losses[0] * state.loss_scale).backward()
        # A tensor, because a changed Python number would trigger a recompilation.
        rate = torch.full((), learning_rate, device=self._device)
        parameters = [value for value in self.network.parameters() if value.requires_grad]
        with torch.no_grad():
            updates, loss_scale, good_steps, norm, finite = self._advance(
                [parameter.detach() for parameter in parameters],
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                {name: list(values.values()) for name, values in state.moments.items()},
                state.updates,
                rate,
                state.loss_scale,
                state.good_steps,
            )
            for parameter in parameters:
                parameter.grad = None
            self._own_forward.update_state()
            metrics = _mean_over_ranks(losses)
            metrics |= {"gradient_norm": norm, "learning_rate": rate}
            if self._scaling is not _UNSCALED:
                metrics |= {"loss_scale": loss_scale, "skipped_steps": 1.0 - finite.float()}
        return state._replace(
            step=state.step + 1, updates=updates, loss_scale=loss_scale, good_steps=good_steps
        ), metrics

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
        loss_scale: Tensor,
        good_steps: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Updates in place; returns updates, loss scale, good steps, norm, finite."""
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self._scaling is _UNSCALED:
            # Without a loss scale, an overflow must stay visible in the norm.
            finite = norm.isfinite()
            new_parameters, new_moments, updates = update_where(
                finite, parameters, gradients, moments, updates, learning_rate, self._optimizer
            )
        else:
            new_parameters, new_moments, updates, finite = update(
                parameters, gradients, moments, updates, learning_rate, loss_scale, self._optimizer
            )
            # An overflow is handled by the loss scale, and its norm counts as 0.
            norm = torch.where(finite, norm / loss_scale, 0.0)
            loss_scale, good_steps = next_loss_scale(loss_scale, good_steps, finite, self._scaling)
        torch._foreach_copy_(parameters, new_parameters)
        for name, values in moments.items():
            torch._foreach_copy_(values, new_moments[name])
        return updates, loss_scale, good_steps, norm, finite


def _mean_over_ranks(losses: Any) -> dict[str, Tensor]:
    stacked = torch.stack([value.detach() for value in losses])
    means = collectives.mean_over_ranks(stacked)
    return dict(zip(losses._fields, means.unbind(), strict=True))
