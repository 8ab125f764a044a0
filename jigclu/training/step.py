"""The training step: forward pass, gradients averaged over all ranks, parameter update.

Forward pass and update are compiled as one graph each. The only side effect is the update, which
writes into the tensors that DistributedDataParallel holds.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jigclu.methods.forward import Forward
from jigclu.ops.optim import LossScaling, Moments, Optimizer, next_loss_scale, update, update_where
from jigclu.system import collectives
from jigclu.training.state import Tensors, TrainState

# Buffers are equal on all ranks already: their statistics are of the global batch.
# torch 2.15 renamed the option.
_NO_BROADCAST: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_UNSCALED = LossScaling(initial=1.0, growth=1.0, backoff=0.5, interval=1)


class StepResult(NamedTuple):
    """Result of a training step.

    state: the next state.
    metrics: scalars float32 [] on the device, equal on all ranks, of the same names in each step.
    measures: of measured steps only, by name: scalars [] or confusions int64 [places, places],
      equal on all ranks.
    """

    state: TrainState
    metrics: dict[str, Tensor]
    measures: dict[str, Tensor]


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
        skip_bad_steps: bool = False,
    ) -> None:
        """Moves the network to the device; compilation itself happens in the first step.

        Args:
          forward: the forward pass to the losses.
          optimizer: of the trainable parameters.
          loss_scaling: dynamic loss scale, used in float16 only.
          use_compile: whether torch.compile compiles forward pass and update.
          device: of this rank.
          skip_bad_steps: whether a step whose gradient is not finite also leaves all that is not
            trained as it was, such as the statistics of batch normalization.
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
        self._kept = list(_untrained(self.network).values()) if skip_bad_steps else []
        self._kept_before = [torch.empty_like(value) for value in self._kept]

    def initial_state(self) -> TrainState:
        """Returns the state before the first step; its tensors are those of the network."""
        trained = {
            name: value.detach()
            for name, value in self.network.named_parameters()
            if value.requires_grad
        }
        return TrainState(
            step=0,
            parameters=trained,
            buffers=_untrained(self.network),
            moments={
                moment: {name: torch.zeros_like(value) for name, value in trained.items()}
                for moment in self._optimizer.moment_names
            },
            updates=torch.tensor(0, device=self._device),
            loss_scale=torch.tensor(self._scaling.initial, device=self._device),
            good_steps=torch.tensor(0, device=self._device),
        )

    def __call__(
        self,
        state: TrainState,
        inputs: tuple[Any, ...],
        learning_rate: float,
        measured: bool = False,
        observe: Callable[[Any], dict[str, Tensor]] | None = None,
    ) -> StepResult:
        """Takes one step. Parameters, buffers and moments change in place.

        Args:
          state: of `initial_state` or an earlier step.
          inputs: arguments of the forward pass, of this rank.
          learning_rate: of this step.
          measured: whether to measure the step, which copies the parameters and may wait for the
            device.
          observe: turns the detached outputs of the forward pass into further metrics, equal on
            all ranks.

        Returns:
          Metrics are the losses of the forward pass as means over the global batch, gradient_norm
          and learning_rate. In float16 also the new loss_scale, and skipped_steps: 1 if a
          gradient overflowed, whose norm then counts as 0. Measures are those of
          `Forward.measures`, and for each top-level module of the network the L2 norm of its
          gradients, of its parameters, and of the update relative to the parameters.
        """
        before = [value.clone() for value in state.parameters.values()] if measured else []
        if self._kept:
            torch._foreach_copy_(self._kept_before, self._kept)
        losses, outputs = self._forward(*inputs)
        (losses[0] * state.loss_scale).backward()
        # A tensor, because a changed Python number would trigger a recompilation.
        rate = torch.full((), learning_rate, device=self._device)
        parameters = [value for value in self.network.parameters() if value.requires_grad]
        with torch.no_grad():
            updates, loss_scale, good_steps, norms, finite = self._advance(
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
            self._own_forward.update_state(outputs, state.step)
            for value, before_step in zip(self._kept, self._kept_before, strict=True):
                value.copy_(torch.where(finite, value, before_step))
            metrics = _mean_over_ranks(losses)
            metrics |= {"gradient_norm": norms.norm(), "learning_rate": rate}
            if self._scaling is not _UNSCALED:
                metrics |= {"loss_scale": loss_scale, "skipped_steps": 1.0 - finite.float()}
            if observe is not None:
                metrics |= observe(outputs)
            measures: dict[str, Tensor] = {}
            if measured:
                measures = self._own_forward.measures(outputs, inputs)
                measures |= _measure_modules(state.parameters, before, norms)
        state = state._replace(
            step=state.step + 1, updates=updates, loss_scale=loss_scale, good_steps=good_steps
        )
        return StepResult(state, metrics, measures)

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
        """Updates in place; returns updates, loss scale, good steps, gradient norms, finite."""
        norms = torch.stack(torch._foreach_norm(gradients))
        if self._scaling is _UNSCALED:
            # Without a loss scale, an overflow must stay visible in the norms.
            finite = norms.norm().isfinite()
            new_parameters, new_moments, updates = update_where(
                finite, parameters, gradients, moments, updates, learning_rate, self._optimizer
            )
        else:
            new_parameters, new_moments, updates, finite = update(
                parameters, gradients, moments, updates, learning_rate, loss_scale, self._optimizer
            )
            # An overflow is handled by the loss scale, and its norms count as 0.
            norms = torch.where(finite, norms / loss_scale, 0.0)
            loss_scale, good_steps = next_loss_scale(loss_scale, good_steps, finite, self._scaling)
        torch._foreach_copy_(parameters, new_parameters)
        for name, values in moments.items():
            torch._foreach_copy_(values, new_moments[name])
        return updates, loss_scale, good_steps, norms, finite


def _untrained(network: nn.Module) -> Tensors:
    """Returns buffers, and parameters without gradient, such as those of a momentum teacher."""
    frozen = {name: value for name, value in network.named_parameters() if not value.requires_grad}
    return dict(network.named_buffers()) | frozen


def _measure_modules(
    parameters: Tensors, before: list[Tensor], gradient_norms: Tensor
) -> dict[str, Tensor]:
    """Returns norms of each top-level module; see `TrainingStep.__call__`.

    Args:
      parameters: after the step.
      before: the same before the step.
      gradient_norms: float32 [parameters].
    """
    names = [name.partition(".")[0] for name in parameters]
    changes = torch._foreach_sub(list(parameters.values()), before)
    size, change = (torch.stack(torch._foreach_norm(values)) for values in (before, changes))
    measures = {}
    for module in dict.fromkeys(names):
        own = torch.tensor([name == module for name in names], device=size.device)
        norms = [(values * own).norm() for values in (gradient_norms, size, change)]
        measures[f"gradient_norm/{module}"] = norms[0]
        measures[f"parameter_norm/{module}"] = norms[1]
        measures[f"update_ratio/{module}"] = norms[2] / norms[1]
    return measures


def _mean_over_ranks(losses: Any) -> dict[str, Tensor]:
    stacked = torch.stack([value.detach() for value in losses])
    means = collectives.mean_over_ranks(stacked)
    return dict(zip(losses._fields, means.unbind(), strict=True))
