"""Momentum copies of modules: exponential moving averages (EMA) of their parameters."""

import copy
from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def momentum_copy(module: _Module) -> _Module:
    """Returns a copy of a module whose parameters do not require gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Moves parameters in place to momentum * average + (1 - momentum) * module, in float32.

    Buffers stay: a copy keeps running statistics of its own.

    Args:
      average: of `momentum_copy`.
      module: that it follows.
      momentum: in [0, 1].
    """
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - momentum)
