"""Momentum copies of modules: exponential moving averages (EMA) of their parameters."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def momentum_copy(module: _Module) -> _Module:
    """Returns a copy of a module whose parameters do not require gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(
    average: nn.Module, module: nn.Module, momentum: float, with_buffers: bool = False
) -> None:
    """Moves parameters in place to momentum * average + (1 - momentum) * module, in float32.

    Args:
      average: of `momentum_copy`.
      module: that it follows.
      momentum: in [0, 1].
      with_buffers: whether floating-point buffers, such as the statistics of batch normalization,
        also move; otherwise the copy keeps its own.
    """
    averages, values = _tensors(average, with_buffers), _tensors(module, with_buffers)
    torch._foreach_lerp_(averages, values, 1 - momentum)


def _tensors(module: nn.Module, with_buffers: bool) -> list[Tensor]:
    buffers = [value for value in module.buffers() if value.is_floating_point()]
    return [*module.parameters(), *(buffers if with_buffers else [])]
