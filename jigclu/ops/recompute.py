"""Activation recomputation: keep only a function's outputs and re-run it for the gradient.

Gradient caching (Gao et al. 2021, arXiv 2101.06983, section 3) uses it to compute the exact
gradient of a loss over a large batch in the memory of one micro-batch, at the cost of a second
forward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def recompute(
    function: Callable[..., tuple[Tensor, ...]], model: nn.Module, *inputs: Any
) -> tuple[Tensor, ...]:
    """Returns function(*inputs) without keeping intermediate activations for the backward pass.

    Args:
      function: deterministic; all its parameters belong to the model. It may update buffers of
        the model; the second run leaves them unchanged.
      model: receives the gradients; the outputs must depend on each of its parameters that
        requires gradients. Outputs that depend on none receive no gradient.
      inputs: passed to the function; they receive no gradient.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    return _Recomputed.apply(function, model, inputs, *trained)


class _Recomputed(torch.autograd.Function):
    # Parameters are arguments so that autograd delivers their gradients and runs their hooks,
    # on which DistributedDataParallel depends.
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., tuple[Tensor, ...]],
        model: nn.Module,
        inputs: tuple[Any, ...],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.model, ctx.inputs, ctx.parameters = function, model, inputs, parameters
        return tuple(function(*inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        buffers = list(ctx.model.buffers())
        saved = [buffer.clone() for buffer in buffers]
        with torch.enable_grad():
            outputs = tuple(ctx.function(*ctx.inputs))
        used = [number for number, value in enumerate(outputs) if value.requires_grad]
        of_parameters = torch.autograd.grad(
            [outputs[number] for number in used],
            ctx.parameters,
            [gradients[number] for number in used],
        )
        if buffers:
            torch._foreach_copy_(buffers, saved)
        return None, None, None, *of_parameters
