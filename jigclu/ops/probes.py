"""Linear probes: several linear classifiers trained side by side on the same features.

A sweep over learning rates and weight decays thus costs one pass over the features. Each probe
trains as it would by itself.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.system.errors import check


class Probes(NamedTuple):
    """Parameters of linear classifiers, or their gradients or momenta.

    weight: float32 [probes, classes, channels].
    bias: float32 [probes, classes].
    """

    weight: Tensor
    bias: Tensor


def initial_probes(count: int, classes: int, channels: int) -> Probes:
    """Initializes all probes alike: weights with standard deviation 0.01, biases 0 (published)."""
    weight = torch.empty(classes, channels).normal_(0, 0.01)
    return Probes(weight.repeat(count, 1, 1), torch.zeros(count, classes))


def probe_logits(probes: Probes, features: Tensor) -> Tensor:
    """Maps features [batch, channels] to logits [probes, batch, classes]."""
    return torch.einsum("bd,pcd->pbc", features, probes.weight) + probes.bias[:, None]


def probe_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each probe for each image.

    Args:
      logits: float32 [probes, batch, classes].
      labels: int64 [batch].

    Returns:
      float32 [probes, batch], in nats.
    """
    targets = labels.expand(len(logits), -1)
    return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def step(
    probes: Probes,
    gradients: Probes,
    momenta: Probes,
    learning_rates: Tensor,
    weight_decays: Tensor,
    momentum: float,
) -> tuple[Probes, Probes]:
    """Takes one step of `optim.SGD` with a learning rate and a weight decay per probe.

    Args:
      probes: before the step.
      gradients: of the loss of each probe.
      momenta: 0 before the first step.
      learning_rates: float32 [probes].
      weight_decays: float32 [probes], L2.
      momentum: in [0, 1), the same for all probes.

    Returns:
      New probes and new momenta.
    """
    new_probes, new_momenta = [], []
    for value, gradient, old in zip(probes, gradients, momenta, strict=True):
        shape = (-1, *[1] * (value.dim() - 1))
        decayed = gradient + weight_decays.view(shape) * value
        new = momentum * old + decayed
        new_momenta.append(new)
        new_probes.append(value - learning_rates.view(shape) * new)
    return Probes(*new_probes), Probes(*new_momenta)


def probe_settings(
    learning_rates: Sequence[float], weight_decays: Sequence[float]
) -> list[tuple[float, float]]:
    """Returns the (learning rate, weight decay) of each probe: all pairs of the two.

    Raises:
      UserError: a value is out of range or occurs twice, or there are none.
    """
    check(
        _are_distinct(learning_rates) and all(0 < rate < math.inf for rate in learning_rates),
        "learning_rates",
        learning_rates,
        "one or more different numbers, above 0 and finite",
    )
    check(
        _are_distinct(weight_decays) and all(0 <= decay < math.inf for decay in weight_decays),
        "weight_decays",
        weight_decays,
        "one or more different numbers, 0 or more and finite",
    )
    return [(rate, decay) for rate in learning_rates for decay in weight_decays]


def _are_distinct(values: Sequence[float]) -> bool:
    return 0 < len(values) == len(set(values))
