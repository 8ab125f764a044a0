"""Multilayer perceptrons: heads of self-supervised methods."""

from itertools import pairwise

from torch import nn

from jigclu.models.batch_norm import BatchNorm


def perceptron(*widths: int, bias: bool, norm: bool = True) -> nn.Sequential:
    """Builds linear layers with batch normalization, unless norm is False, and ReLU between them.

    Args:
      *widths: channels of the input, of each hidden layer, and of the output.
      bias: whether the last layer has a bias; normalization would cancel those of hidden layers.
      norm: whether hidden layers are normalized over all ranks.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        layers += [BatchNorm(outputs), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))
