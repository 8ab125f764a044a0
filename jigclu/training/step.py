"""The training step: one forward to a loss, gradients of all ranks, one update.

Forward and update are compiled whole; the update writes its results into the
tensors that DistributedDataParallel holds, the one impure place. What is
minimized is a `Forward`: `methods.jigsaw.JigsawForward`, `classification.ClassifierForward`.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jigclu.methods.forward import Forward
from jigclu.ops.optim import LossScaling, Optimizer, next_loss_scale, update, update_where
from jigclu.system import collectives
from jigclu.training.state import TrainState

# Statistics are of the global batch already: nothing to broadcast. torch 2.15 renamed the option.
_NO_BROADCAST: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_UNSCALED = LossScaling(initial=1.0, growth=1.0, backoff=0.5, interval=1)


class TrainingStep:
    """One step of training, on any number of ranks: (state, inputs) to (state, metrics).

    Every rank must build it and call it alike. Nothing in a step waits for the device.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: Optimizer,
        loss_scaling: LossScaling,
        compile: bool,
        device: torch.device,
    ) -> None:
        """Moves the model to the device; compilation itself happens in the first step.

        Args:
          forward: what to minimize.
          optimizer: takes the steps.
          loss_scaling: of float16; the others need none.
          compile: by torch.compile, forward and update each as one graph.
          device: where to train.
        """
        self._scaling = loss_scaling if forward.precision == torch.float16 else _UNSCALED
        self._optimizer = optimizer
        self.model = forward.model.to(device)
        self._advance = self._take_step
        if compile:
            # Compiled before it is wrapped: compiling DistributedDataParallel itself does nothing.
            forward.compile_graphs()
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
        self, state: TrainState, inputs: tuple[Any, ...], learning_rate: float
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Takes one step. Parameters, buffers and momentum change in place.

        Args:
          state: of `initial_state` or an earlier step.
          inputs: the arguments of the forward, of this rank.
          learning_rate: of this step.

        Returns:
          The next state, and metrics, each float32 [], equal on all ranks: the
          means over the global batch of what the forward returns, gradient_norm and
          learning_rate; in float16 also the new loss_scale and skipped_steps, 1
          where a gradient overflowed, whose norm then counts as 0.
        """
        losses_here = self._forward(*inputs)
        (losses_here[0] * state.loss_scale).backward()
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
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self._scaling is _UNSCALED:
            # Nothing to divide by, and an overflow must be seen as it is.
            finite = norm.isfinite()
            new_parameters, new_momenta = update_where(
                finite, parameters, gradients, momenta, learning_rate, self._optimizer
            )
        else:
            new_parameters, new_momenta, finite = update(
                parameters, gradients, momenta, learning_rate, loss_scale, self._optimizer
            )
            # An overflow is an event that the scale answers.
            norm = torch.where(finite, norm / loss_scale, 0.0)
            loss_scale, good_steps = next_loss_scale(loss_scale, good_steps, finite, self._scaling)
        torch._foreach_copy_(parameters, new_parameters)
        torch._foreach_copy_(momenta, new_momenta)
        return loss_scale, good_steps, norm, finite


def _mean_over_ranks(values: Any) -> dict[str, Tensor]:
    means = collectives.mean_over_ranks(torch.stack([value.detach() for value in values]))
    return dict(zip(values._fields, means.unbind(), strict=True))
