"""What every method builds on: a model, and its forward pass to the losses."""

from typing import Any

import torch
from torch import Tensor, nn

from jigclu.system.machine import PRECISIONS


class Forward(nn.Module):
    """A model and what is minimized of it.

    `forward`, of a subclass, returns a NamedTuple of scalars, the loss first:
    means over what this rank saw.
    """

    def __init__(self, model: nn.Module, precision: str, channels_last: bool) -> None:
        """Keeps the model, in the memory format asked for.

        Args:
          model: with initial weights, the same on every rank.
          precision: "float32", or of autocast: "bfloat16" or "float16".
          channels_last: memory format of images and weights.
        """
        super().__init__()
        self.precision = PRECISIONS[precision]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)

    def compile_graphs(self) -> None:
        """Lets torch.compile make one graph of it, at the first call."""
        self.compile(fullgraph=True, dynamic=False)

    def apply_model(self, images: Tensor) -> Any:
        """Returns what the model makes of images [batch, 3, height, width], under autocast."""
        enabled = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=enabled):
            return self.model(images.contiguous(memory_format=self.memory_format))
