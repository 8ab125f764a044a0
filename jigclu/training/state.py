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
    moments: running averages of the optimizer, by their name and that of the parameter, float32.
    updates: int64 [], steps of the optimizer so far: those that no overflow skipped.
    loss_scale: float32 [], factor of the loss before the backward pass (1 except in float16).
    good_steps: int64 [], steps since the loss scale last changed.
    """

    step: int
    parameters: Tensors
    buffers: Tensors
    moments: dict[str, Tensors]
    updates: Tensor
    loss_scale: Tensor
    good_steps: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and moments, by names that are unique."""
        moments = {
            f"{moment} of {name}": value
            for moment, values in self.moments.items()
            for name, value in values.items()
        }
        return self.parameters | self.buffers | moments

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes, about that of a checkpoint."""
        return sum(value.nbytes for value in self.tensors.values())
