"""Optimizers and the dynamic loss scale of fp16, as pure functions of lists of tensors.

Everything that changes between steps is a tensor, so compiled steps neither recompile nor
synchronize with the device.
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
    """An update rule. An instance holds its settings; state is passed in and returned."""

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
    """SGD with an adaptive learning rate per layer (You et al. 2017, arXiv 1708.03888).

    The step of a weight is multiplied by trust_coefficient * |weight| / |gradient +
    weight_decay * weight|. As is usual in self-supervised training, vectors (biases and batch
    normalization) take plain SGD steps without weight decay.

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
    """Wraps an optimizer to scale the learning rate of each parameter.

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
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018; torch.amp.GradScaler).

    initial: the first scale (usually 65536).
    growth: factor after `interval` steps without overflow (usually 2).
    backoff: factor after an overflow (usually 0.5).
    interval: steps between growths (usually 2000).
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
    """Shrinks the loss scale after an overflow and grows it after `interval` good steps.

    Args:
      scale: float32 [].
      good_steps: int64 [], steps since the scale last changed.
      finite: bool [], whether all gradients of this step were finite.
      scaling: factors and interval.

    Returns:
      The new scale and the new good_steps.
    """
    counted = good_steps + 1
    grows = finite & (counted >= scaling.interval)
    factor = torch.where(grows, scaling.growth, torch.where(finite, 1.0, scaling.backoff))
    return scale * factor, torch.where(grows | ~finite, 0, counted)


def all_finite(tensors: TensorList) -> Tensor:
    """Returns bool [], whether no element of any tensor is infinite or NaN."""
    # The maximum norm of finite values cannot overflow, unlike a sum.
    return torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite().all()


def update(
    parameters: TensorList,
    gradients: TensorList,
    momenta: TensorList,
    learning_rate: Tensor,
    loss_scale: Tensor,
    optimizer: Optimizer,
) -> tuple[TensorList, TensorList, Tensor]:
    """Takes one step of an optimizer on scaled gradients, or skips it if one overflowed.

    Args:
      parameters: tensors of any shapes.
      gradients: like the parameters, of loss * loss_scale.
      momenta: like the parameters.
      learning_rate: float32 [].
      loss_scale: float32 [].
      optimizer: takes the step.

    Returns:
      New parameters, new momenta, and bool [], whether the step was taken.
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
    """Takes one step of an optimizer, or skips it if `finite`, bool [], is false.

    The other arguments are those of `Optimizer`.

    Returns:
      New parameters and new momenta; bitwise the old ones if the step was skipped.
    """
    stepped = optimizer(parameters, gradients, momenta, learning_rate)
    new_parameters, new_momenta = (
        [torch.where(finite, new, old) for new, old in zip(after, before, strict=True)]
        for after, before in zip(stepped, (parameters, momenta), strict=True)
    )
    return new_parameters, new_momenta
