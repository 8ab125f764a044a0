"""How parameters follow gradients: SGD, LARS and the dynamic scale of fp16 losses.

Everything that changes from step to step is a tensor, so nothing recompiles
and nothing waits for the device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from jigclu.system.errors import UserError

TensorList = list[Tensor]


class Optimizer(Protocol):
    """Returns new parameters and momentum: `sgd` or `lars` with their settings bound."""

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        momenta: TensorList,
        learning_rate: Tensor,
    ) -> tuple[TensorList, TensorList]: ...


def sgd(
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    *,
    momentum: float,
    weight_decay: float,
) -> tuple[TensorList, TensorList]:
    """Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

    Args:
      parameters: tensors of any shapes.
      gradients: like the parameters.
      momenta: like the parameters, 0 before the first step.
      learning_rate: float32 [].
      momentum: in [0, 1).
      weight_decay: L2, on every parameter (published 1e-4).

    Returns:
      New parameters and new momenta.
    """
    decayed = torch._foreach_add(gradients, parameters, alpha=weight_decay)
    new_momenta = torch._foreach_add(decayed, torch._foreach_mul(momenta, momentum))
    steps = torch._foreach_mul(new_momenta, learning_rate)
    return list(torch._foreach_sub(parameters, steps)), list(new_momenta)


def lars(
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
) -> tuple[TensorList, TensorList]:
    """SGD whose steps are scaled layer by layer (You et al. 2017, arXiv 1708.03888).

    A weight's step is multiplied by trust_coefficient * |weight| / |gradient +
    weight_decay * weight|. Vectors (biases, batch normalization) take plain
    steps without decay, as is usual in self-supervision.

    Args: as `sgd`, and
      trust_coefficient: > 0, usually 0.001.

    Returns:
      New parameters and new momenta.
    """
    scaled = [
        _trusted(parameter, gradient + weight_decay * parameter, trust_coefficient)
        if parameter.ndim > 1
        else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return sgd(parameters, scaled, momenta, learning_rate, momentum=momentum, weight_decay=0.0)


def _trusted(parameter: Tensor, gradient: Tensor, trust_coefficient: float) -> Tensor:
    size, change = parameter.norm(), gradient.norm()
    usable = (size > 0) & (change > 0)
    return gradient * torch.where(usable, trust_coefficient * size / change, 1.0)


def scaled(
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    *,
    optimizer: Optimizer,
    factors: Sequence[float],
) -> tuple[TensorList, TensorList]:
    """Another optimizer, with a learning rate of its own for each parameter.

    Args:
      parameters, gradients, momenta, learning_rate: as of `sgd`.
      optimizer: that takes the steps.
      factors: of the learning rate, one a parameter.

    Returns:
      New parameters and new momenta.
    """
    new_parameters, new_momenta = list(parameters), list(momenta)
    for factor in sorted(set(factors)):
        chosen = [index for index, own in enumerate(factors) if own == factor]
        moved = optimizer(
            [parameters[index] for index in chosen],
            [gradients[index] for index in chosen],
            [momenta[index] for index in chosen],
            learning_rate * factor,
        )
        for index, parameter, momentum in zip(chosen, *moved, strict=True):
            new_parameters[index], new_momenta[index] = parameter, momentum
    return new_parameters, new_momenta


class LossScaling(NamedTuple):
    """How the loss scale of fp16 moves: its first value, factors, and steps between growths.

    The customary values (Micikevicius et al. 2018, and torch.amp.GradScaler)
    are 65536, 2, 0.5 and 2000.
    """

    initial: float
    growth: float
    backoff: float
    interval: int


def check_learning_rate(learning_rate: float) -> None:
    """Raises UserError for a value out of range."""
    if not 0 < learning_rate < math.inf:
        raise UserError(f"learning_rate is {learning_rate}; it must be above 0, and finite")


def check_optimizer(momentum: float, weight_decay: float) -> None:
    """Raises UserError for a value out of range."""
    if not 0 <= momentum < 1:
        raise UserError(f"momentum is {momentum}; it must lie in [0, 1)")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay is {weight_decay}; it must be 0 or more, and finite")


def check_loss_scaling(scaling: LossScaling) -> None:
    """Raises UserError for a value out of range."""
    if not (
        0 < scaling.initial < math.inf
        and 1 <= scaling.growth < math.inf
        and 0 < scaling.backoff < 1
        and scaling.interval >= 1
    ):
        raise UserError(
            f"loss scaling is {tuple(scaling)}; initial must be above 0, growth 1 or more, "
            "backoff in (0, 1) and interval 1 step or more"
        )


def next_loss_scale(
    scale: Tensor, good_steps: Tensor, finite: Tensor, scaling: LossScaling
) -> tuple[Tensor, Tensor]:
    """Shrinks the scale after an overflow, grows it after `interval` steps without one.

    Args:
      scale: float32 [].
      good_steps: int64 [], steps since the scale last changed.
      finite: bool [], whether all gradients of this step were finite.
      scaling: the rule.

    Returns:
      The new scale and good_steps.
    """
    counted = good_steps + 1
    grows = finite & (counted >= scaling.interval)
    factor = torch.where(grows, scaling.growth, torch.where(finite, 1.0, scaling.backoff))
    return scale * factor, torch.where(grows | ~finite, 0, counted)


def all_finite(tensors: TensorList) -> Tensor:
    """Returns bool [], whether no element of any tensor is infinite or NaN."""
    # A sum overflows only where an element is huge already: the norm says all in one number.
    return torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all()


def update(
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    loss_scale: Tensor,
    optimizer: Optimizer,
) -> tuple[TensorList, TensorList, Tensor]:
    """Takes one step, or none where a gradient overflowed.

    Args:
      parameters: tensors of any shapes.
      gradients: like the parameters, of the loss times loss_scale.
      momenta: like the parameters.
      learning_rate: float32 [].
      loss_scale: float32 [].
      optimizer: `sgd` or `lars` with their settings bound.

    Returns:
      New parameters, new momenta, and whether the step was taken (bool []).
    """
    finite = all_finite(gradients)
    unscaled = list(torch._foreach_div(gradients, loss_scale))
    return *update_where(finite, parameters, unscaled, momenta, learning_rate, optimizer), finite


def update_where(
    finite: Tensor,
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    optimizer: Optimizer,
) -> tuple[TensorList, TensorList]:
    """Takes one step of an optimizer, or none where `finite`, bool [], is false.

    The other arguments are those of `sgd`.

    Returns:
      New parameters and new momenta, to the bit the old ones where there was no step.
    """
    stepped = optimizer(parameters, gradients, momenta, learning_rate)
    new_parameters, new_momenta = (
        [torch.where(finite, new, old) for new, old in zip(news, olds, strict=True)]
        for news, olds in zip(stepped, (parameters, momenta), strict=True)
    )
    return new_parameters, new_momenta
