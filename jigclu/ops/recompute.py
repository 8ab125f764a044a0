"""Outputs kept without what made them, which is made again for the gradient.

Gradient caching (Gao et al. 2021, arXiv 2101.06983, section 3): a loss over a large batch,
exact, in the memory of a piece. A piece is run twice, forward and once more for its gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def recompute(
    function: Callable[..., tuple[Tensor, ...]], model: nn.Module, *inputs: Any
) -> tuple[Tensor, ...]:
    """Returns function(*inputs), which holds on to the inputs and the outputs alone.

    Args:
      function: gives the same outputs when it is called again; all its parameters are the
        model's, and it may change the model's buffers, which the second run leaves alone.
      model: what gradients flow to; its outputs must depend on every parameter.
      inputs: that need no gradient.
    """
    return _Recomputed.apply(function, model, inputs, *model.parameters())


class _Recomputed(torch.autograd.Function):
    # Parameters are arguments so that gradients, and the hooks of who waits for them, reach them.
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
        kept = [buffer.clone() for buffer in buffers]
        with torch.enable_grad():
            outputs = tuple(ctx.function(*ctx.inputs))
        found = torch.autograd.grad(outputs, ctx.parameters, gradients)
        if buffers:
            torch._foreach_copy_(buffers, kept)
        return None, None, None, *found
