"""How parameters follow gradients: SGD, LARS and the dynamic scale of fp16 losses.

Everything that changes from step to step is a tensor, so nothing recompiles
and nothing waits for the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jigclu.system.errors import check

TensorList = list[Tensor]


class Optimizer(Protocol):
    """An update rule. An instance holds its settings; the state is passed in and returned."""

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        momenta: TensorList,
        learning_rate: Tensor,
    ) -> tuple[TensorList, TensorList]:
        """Takes one step.

        Args:
          parameters: tensors of any shapes.
          gradients: like the parameters.
          momenta: like the parameters, 0 before the first step.
          learning_rate: float32 [].

        Returns:
          New parameters and new momenta.
        """


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

    momentum: in [0, 1).
    weight_decay: L2, on every parameter (published 1e-4).
    """

    momentum: float
    weight_decay: float

    def __post_init__(self) -> None:
        check_momentum(self.momentum)
        check_weight_decay(self.weight_decay)

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        momenta: TensorList,
        learning_rate: Tensor,
    ) -> tuple[TensorList, TensorList]:
        """Takes one step; see `Optimizer`."""
        decayed = torch._foreach_add(gradients, parameters, alpha=self.weight_decay)
        return _momentum_step(parameters, decayed, momenta, learning_rate, self.momentum)


@dataclass(frozen=True, kw_only=True)
class LARS:
    """SGD with a learning rate per layer (You et al. 2017, arXiv 1708.03888).

    The step of a weight is multiplied by trust_coefficient * |weight| / |gradient +
    weight_decay * weight|. Vectors (biases, batch normalization) take plain steps without
    decay, as is usual in self-supervision.

    momentum: in [0, 1).
    weight_decay: L2, on weights.
    trust_coefficient: > 0, usually 0.001.
    """

    momentum: float
    weight_decay: float
    trust_coefficient: float

    def __post_init__(self) -> None:
        check_momentum(self.momentum)
        check_weight_decay(self.weight_decay)
        trust = self.trust_coefficient
        check(0 < trust < math.inf, "trust_coefficient", trust, "above 0 and finite")

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        momenta: TensorList,
        learning_rate: Tensor,
    ) -> tuple[TensorList, TensorList]:
        """Takes one step; see `Optimizer`."""
        scaled = [
            self._scale(parameter, gradient + self.weight_decay * parameter)
            if parameter.ndim > 1
            else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        return _momentum_step(parameters, scaled, momenta, learning_rate, self.momentum)

    def _scale(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        size, change = parameter.norm(), gradient.norm()
        usable = (size > 0) & (change > 0)
        return gradient * torch.where(usable, self.trust_coefficient * size / change, 1.0)


def _momentum_step(
    parameters: TensorList,
    gradients: TensorList | tuple[Tensor, ...],
    momenta: TensorList,
    learning_rate: Tensor,
    momentum: float,
) -> tuple[TensorList, TensorList]:
    new_momenta = torch._foreach_add(gradients, torch._foreach_mul(momenta, momentum))
    steps = torch._foreach_mul(new_momenta, learning_rate)
    return list(torch._foreach_sub(parameters, steps)), list(new_momenta)


@dataclass(frozen=True, kw_only=True)
class PerParameterRates:
    """Another optimizer, with a learning rate of its own for each parameter.

    optimizer: takes the steps.
    factors: of the learning rate, one per parameter.
    """

    optimizer: Optimizer
    factors: Sequence[float]

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        momenta: TensorList,
        learning_rate: Tensor,
    ) -> tuple[TensorList, TensorList]:
        """Takes one step; see `Optimizer`."""
        new_parameters, new_momenta = list(parameters), list(momenta)
        for factor in sorted(set(self.factors)):
            chosen = [index for index, own in enumerate(self.factors) if own == factor]
            moved = self.optimizer(
                [parameters[index] for index in chosen],
                [gradients[index] for index in chosen],
                [momenta[index] for index in chosen],
                learning_rate * factor,
            )
            for index, parameter, momentum in zip(chosen, *moved, strict=True):
                new_parameters[index], new_momenta[index] = parameter, momentum
        return new_parameters, new_momenta


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How the loss scale of fp16 moves: its first value, factors, and steps between growths.

    The customary values (Micikevicius et al. 2018, and torch.amp.GradScaler)
    are 65536, 2, 0.5 and 2000.
    """

    initial: float
    growth: float
    backoff: float
    interval: int

    def __post_init__(self) -> None:
        check(0 < self.initial < math.inf, "initial", self.initial, "above 0 and finite")
        check(1 <= self.growth < math.inf, "growth", self.growth, "1 or more and finite")
        check(0 < self.backoff < 1, "backoff", self.backoff, "in (0, 1)")
        check(self.interval >= 1, "interval", self.interval, "1 or more steps")


def check_learning_rate(learning_rate: float) -> None:
    """Raises UserError for a learning_rate out of range."""
    check(0 < learning_rate < math.inf, "learning_rate", learning_rate, "above 0 and finite")


def check_momentum(momentum: float) -> None:
    """Raises UserError for a momentum out of range."""
    check(0 <= momentum < 1, "momentum", momentum, "in [0, 1)")


def check_weight_decay(weight_decay: float) -> None:
    """Raises UserError for a weight_decay out of range."""
    check(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "0 or more and finite")


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
      optimizer: takes the step.

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

    The other arguments are those of `Optimizer`.

    Returns:
      New parameters and new momenta, to the bit the old ones where there was no step.
    """
    stepped = optimizer(parameters, gradients, momenta, learning_rate)
    new_parameters, new_momenta = (
        [torch.where(finite, new, old) for new, old in zip(news, olds, strict=True)]
        for news, olds in zip(stepped, (parameters, momenta), strict=True)
    )
    return new_parameters, new_momenta
