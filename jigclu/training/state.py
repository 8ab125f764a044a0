"""State of a training run, as plain data."""

from typing import NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]


class TrainState(NamedTuple):
    """State of a run between two steps.

    step: steps taken so far.
    parameters: trainable parameters, by name, float32.
    buffers: all other tensors of the network, by name, such as the running statistics of
      batch normalization and the state of a method.
    momentum: of the optimizer, by parameter name, float32.
    loss_scale: float32 [], factor of the loss before the backward pass (1 except in float16).
    good_steps: int64 [], steps since the loss scale last changed.
    """

    step: int
    parameters: Tensors
    buffers: Tensors
    momentum: Tensors
    loss_scale: Tensor
    good_steps: Tensor
