"""The whole state of a training run, as plain data."""

from typing import NamedTuple

from torch import Tensor

Tensors = dict[str, Tensor]


class TrainState(NamedTuple):
    """What a step takes and gives back.

    step: steps taken so far.
    parameters: of the model, by name, float32.
    buffers: of the model (running statistics of batch normalization), by name.
    momentum: of the optimizer, by parameter name, float32.
    loss_scale: float32 [], what the loss is multiplied with before backward (1 without fp16).
    good_steps: int64 [], steps since the scale last changed.
    """

    step: int
    parameters: Tensors
    buffers: Tensors
    momentum: Tensors
    loss_scale: Tensor
    good_steps: Tensor

    def bytes(self) -> int:
        """Returns the memory of all tensors of the state, bytes, without gradients."""
        tensors = [*self.parameters.values(), *self.buffers.values(), *self.momentum.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
