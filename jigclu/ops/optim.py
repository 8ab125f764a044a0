"""Optimizers and the dynamic loss scale of fp16, as pure functions of lists of tensors.

Everything that changes between steps is a tensor, so compiled steps neither recompile nor
synchronize with the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from jigclu.system.errors import UserError, check

TensorList = list[Tensor]
# Running averages that an optimizer keeps, by name: one tensor like each parameter, 0 at first.
Moments = dict[str, TensorList]


class Optimizer(Protocol):
    """An update rule. An instance holds its settings; state is passed in and returned."""

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Names of the running averages that it keeps."""

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
    ) -> tuple[TensorList, Moments]:
        """Takes one step.

        Args:
          parameters: tensors of any shapes.
          gradients: like the parameters.
          moments: running averages by each of `moment_names`.
          updates: int64 [], steps taken before this one.
          learning_rate: float32 [].

        Returns:
          New parameters and new moments.
        """


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

    momentum: share of the previous step that a step repeats, in [0, 1).
    nesterov: whether a step looks ahead by the new momentum (Sutskever et al., ICML 2013).
    weight_decay: L2 (published 1e-4).
    decay_norms_and_biases: whether weight decay also applies to vectors: biases, normalization
      and layer scales.
    """

    moment_names: ClassVar = ("momentum",)

    momentum: float
    nesterov: bool
    weight_decay: float
    decay_norms_and_biases: bool

    def __post_init__(self) -> None:
        check_momentum(self.momentum)
        check_weight_decay(self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "nesterov is True, but momentum is 0.0, without which it has no effect; use a "
                "momentum above 0, usually 0.9, or nesterov = False"
            )

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
    ) -> tuple[TensorList, Moments]:
        """Takes one step; see `Optimizer`."""
        decayed = self._add_decay(parameters, gradients)
        return _momentum_step(
            parameters, decayed, moments, learning_rate, self.momentum, self.nesterov
        )

    def _add_decay(self, parameters: TensorList, gradients: TensorList) -> TensorList:
        if self.decay_norms_and_biases:
            return list(torch._foreach_add(gradients, parameters, alpha=self.weight_decay))
        return [
            gradient if _is_vector(parameter) else gradient.add(parameter, alpha=self.weight_decay)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), as torch.optim.AdamW.

    beta1: decay of the mean of gradients, in (0, 1), usually 0.9.
    beta2: decay of the mean of their squares, in (0, 1), usually 0.999.
    epsilon: added to the root of the mean square, > 0, usually 1e-8.
    weight_decay: share of a parameter that a step of learning rate 1 would remove.
    decay_norms_and_biases: whether weight decay also applies to vectors: biases, normalization
      and layer scales.
    """

    moment_names: ClassVar = ("first_moment", "second_moment")

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decay_norms_and_biases: bool

    def __post_init__(self) -> None:
        check(0 < self.beta1 < 1, "beta1", self.beta1, "in (0, 1), usually 0.9")
        check(0 < self.beta2 < 1, "beta2", self.beta2, "in (0, 1), usually 0.999")
        epsilon = self.epsilon
        check(0 < epsilon < math.inf, "epsilon", epsilon, "above 0 and finite, usually 1e-8")
        check_weight_decay(self.weight_decay)

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
    ) -> tuple[TensorList, Moments]:
        """Takes one step; see `Optimizer`."""
        first = torch._foreach_lerp(moments["first_moment"], gradients, 1 - self.beta1)
        second = torch._foreach_addcmul(
            torch._foreach_mul(moments["second_moment"], self.beta2),
            gradients,
            gradients,
            1 - self.beta2,
        )
        unbiased = torch._foreach_div(second, _bias(self.beta2, updates))
        divisors = torch._foreach_add(torch._foreach_sqrt(unbiased), self.epsilon)
        scaled = torch._foreach_mul(first, learning_rate / _bias(self.beta1, updates))
        steps = torch._foreach_div(scaled, divisors)
        moved = torch._foreach_sub(self._decay(parameters, learning_rate), steps)
        return list(moved), {"first_moment": list(first), "second_moment": list(second)}

    def _decay(self, parameters: TensorList, learning_rate: Tensor) -> TensorList:
        kept = 1 - learning_rate * self.weight_decay
        if self.decay_norms_and_biases:
            return list(torch._foreach_mul(parameters, kept))
        return [value if _is_vector(value) else value * kept for value in parameters]


def _bias(beta: float, updates: Tensor) -> Tensor:
    """Returns 1 - beta ** (updates + 1), the bias of a mean that starts at 0, float32 []."""
    # The difference itself would lose most of its digits in the first steps.
    return -torch.expm1((updates + 1) * math.log(beta))


def _is_vector(parameter: Tensor) -> bool:
    """Returns whether a parameter is a bias, or of normalization or a layer scale."""
    return parameter.ndim <= 1


@dataclass(frozen=True, kw_only=True)
class LARS:
    """SGD with an adaptive learning rate per layer (You et al. 2017, arXiv 1708.03888).

    The step of a weight is multiplied by trust_coefficient * |weight| / |gradient +
    weight_decay * weight|. As is usual in self-supervised training, vectors (biases and batch
    normalization) take plain SGD steps without weight decay.

    momentum: share of the previous step that a step repeats, in [0, 1).
    weight_decay: L2, on weights.
    trust_coefficient: factor of the adaptive rate, > 0, usually 0.001.
    """

    moment_names: ClassVar = ("momentum",)

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
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
    ) -> tuple[TensorList, Moments]:
        """Takes one step; see `Optimizer`."""
        scaled = [
            gradient
            if _is_vector(parameter)
            else self._scale(parameter, gradient + self.weight_decay * parameter)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        return _momentum_step(parameters, scaled, moments, learning_rate, self.momentum)

    def _scale(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        size, change = parameter.norm(), gradient.norm()
        usable = (size > 0) & (change > 0)
        return gradient * torch.where(usable, self.trust_coefficient * size / change, 1.0)


def _momentum_step(
    parameters: TensorList,
    gradients: TensorList,
    moments: Moments,
    learning_rate: Tensor,
    momentum: float,
    nesterov: bool = False,
) -> tuple[TensorList, Moments]:
    momenta = torch._foreach_add(gradients, torch._foreach_mul(moments["momentum"], momentum))
    directions = torch._foreach_add(gradients, momenta, alpha=momentum) if nesterov else momenta
    steps = torch._foreach_mul(directions, learning_rate)
    return list(torch._foreach_sub(parameters, steps)), {"momentum": list(momenta)}


@dataclass(frozen=True, kw_only=True)
class PerParameterRates:
    """Wraps an optimizer to scale the learning rate of each parameter.

    optimizer: takes the steps.
    factors: of the learning rate, one per parameter.
    """

    optimizer: Optimizer
    factors: Sequence[float]

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Those of the wrapped optimizer."""
        return self.optimizer.moment_names

    def __call__(
        self,
        parameters: TensorList,
        gradients: TensorList,
        moments: Moments,
        updates: Tensor,
        learning_rate: Tensor,
    ) -> tuple[TensorList, Moments]:
        """Takes one step; see `Optimizer`."""
        new_parameters = list(parameters)
        new_moments = {name: list(values) for name, values in moments.items()}
        for factor in sorted(set(self.factors)):
            chosen = [index for index, own in enumerate(self.factors) if own == factor]
            moved, moved_moments = self.optimizer(
                [parameters[index] for index in chosen],
                [gradients[index] for index in chosen],
                {name: [values[index] for index in chosen] for name, values in moments.items()},
                updates,
                learning_rate * factor,
            )
            for position, index in enumerate(chosen):
                new_parameters[index] = moved[position]
                for name, values in moved_moments.items():
                    new_moments[name][index] = values[position]
        return new_parameters, new_moments


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
    moments: Moments,
    updates: Tensor,
    learning_rate: Tensor,
    loss_scale: Tensor,
    optimizer: Optimizer,
) -> tuple[TensorList, Moments, Tensor, Tensor]:
    """Takes one step of an optimizer on scaled gradients, or skips it if one overflowed.

    Args:
      parameters: tensors of any shapes.
      gradients: like the parameters, of loss * loss_scale.
      moments: see `Optimizer`.
      updates: int64 [], steps taken before this one; skipped ones do not count.
      learning_rate: float32 [].
      loss_scale: float32 [].
      optimizer: takes the step.

    Returns:
      New parameters, moments and updates, and bool [], whether the step was taken.
    """
    finite = all_finite(gradients)
    unscaled = list(torch._foreach_div(gradients, loss_scale))
    return *update_where(
        finite, parameters, unscaled, moments, updates, learning_rate, optimizer
    ), finite


def update_where(
    finite: Tensor,
    parameters: TensorList,
    gradients: TensorList,
    moments: Moments,
    updates: Tensor,
    learning_rate: Tensor,
    optimizer: Optimizer,
) -> tuple[TensorList, Moments, Tensor]:
    """Takes one step of an optimizer, or skips it if `finite`, bool [], is false.

    The other arguments are those of `Optimizer`.

    Returns:
      New parameters, moments and updates; bitwise the old ones if the step was skipped.
    """

    def choose(after: TensorList, before: TensorList) -> TensorList:
        return [torch.where(finite, new, old) for new, old in zip(after, before, strict=True)]

    moved, moved_moments = optimizer(parameters, gradients, moments, updates, learning_rate)
    new_moments = {name: choose(moved_moments[name], moments[name]) for name in moments}
    return choose(moved, parameters), new_moments, updates + finite
