"""Several linear classifiers trained side by side on the same features.

A sweep of learning rates and weight decays costs one pass over the features:
each head is independent of the others, and gets what it would get alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.ops.optim import check_learning_rate, check_weight_decay
from jigclu.system.errors import UserError


class Probes(NamedTuple):
    """Linear classifiers, or a tensor for each of their parameters.

    weight: float32 [heads, classes, channels].
    bias: float32 [heads, classes].
    """

    weight: Tensor
    bias: Tensor


def initial_probes(heads: int, classes: int, channels: int) -> Probes:
    """Returns heads that all begin alike: weights from N(0, 0.01), biases 0 (published)."""
    weight = torch.empty(classes, channels).normal_(0, 0.01)
    return Probes(weight.repeat(heads, 1, 1), torch.zeros(heads, classes))


def probe_logits(heads: Probes, features: Tensor) -> Tensor:
    """Maps features [batch, channels] to logits [heads, batch, classes]."""
    return torch.einsum("bd,hcd->hbc", features, heads.weight) + heads.bias[:, None]


def probe_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each probe for each image.

    Args:
      logits: float32 [heads, batch, classes].
      labels: int64 [batch].

    Returns:
      float32 [heads, batch], in nats.
    """
    targets = labels.expand(len(logits), -1)
    return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def step(
    heads: Probes,
    gradients: Probes,
    momenta: Probes,
    learning_rates: Tensor,
    weight_decays: Tensor,
    momentum: float,
) -> tuple[Probes, Probes]:
    """Takes a step of SGD with momentum, as `optim.SGD`, each head by its own settings.

    Args:
      heads: to move.
      gradients: of each head's own loss.
      momenta: 0 before the first step.
      learning_rates: float32 [heads].
      weight_decays: float32 [heads], L2.
      momentum: in [0, 1), of all heads.

    Returns:
      New heads and new momenta.
    """
    moved, new_momenta = [], []
    for value, gradient, old in zip(heads, gradients, momenta, strict=True):
        shape = (-1, *[1] * (value.dim() - 1))
        decayed = gradient + weight_decays.view(shape) * value
        new = momentum * old + decayed
        new_momenta.append(new)
        moved.append(value - learning_rates.view(shape) * new)
    return Probes(*moved), Probes(*new_momenta)


def probe_settings(
    learning_rates: Sequence[float], weight_decays: Sequence[float]
) -> list[tuple[float, float]]:
    """Returns the (learning rate, weight decay) of each head: every pair of the two.

    Raises:
      UserError: no pair, one that is there twice, or a value out of range.
    """
    pairs = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    if not pairs or len(set(pairs)) < len(pairs):
        raise UserError(
            f"learning_rates are {tuple(learning_rates)} and weight_decays {tuple(weight_decays)}; "
            "expected one or more of each, all different"
        )
    for rate, decay in pairs:
        check_learning_rate(rate)
        check_weight_decay(decay)
    return pairs
