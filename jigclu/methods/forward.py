"""Forward passes from uint8 images to losses: the part of a step that torch.compile compiles."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jigclu.methods.method import Method
from jigclu.ops.augment import Draws
from jigclu.ops.normalize import normalize
from jigclu.ops.recompute import recompute
from jigclu.system.machine import PRECISIONS


class Forward(nn.Module):
    """A network and its losses.

    `forward` of a subclass returns losses and outputs. Losses are a NamedTuple of scalars, the
    loss to minimize first: means over the images of this rank. Outputs are detached tensors for
    `measures`, none for most networks.
    """

    def __init__(self, network: nn.Module, precision: str, channels_last: bool) -> None:
        """Keeps the network, converted to the memory format.

        Args:
          network: with initial weights, the same on every rank.
          precision: "float32", or of autocast: "bfloat16" or "float16".
          channels_last: memory format of images and weights.
        """
        super().__init__()
        self.precision = PRECISIONS[precision]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)

    def compile_graphs(self) -> None:
        """Makes the first call compile the forward pass as one graph."""
        self.compile(fullgraph=True, dynamic=False)

    def apply_network(self, images: Tensor, **options: bool) -> Any:
        """Returns the outputs of the network for images [batch, 3, height, width] and options."""
        enabled = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=enabled):
            return self.network(images.contiguous(memory_format=self.memory_format), **options)

    def update_state(self, outputs: Any, step: int) -> None:
        """Updates state that does not follow gradients, after the optimizer step.

        Args:
          outputs: of the forward pass.
          step: counted from 0.
        """

    def measures(self, outputs: Any, inputs: Any) -> dict[str, Tensor]:
        """Returns measures of a step from its outputs and inputs, see `Method.measures`."""
        return {}


class NormalizingForward(Forward):
    """The forward pass of a network for labeled images, which it normalizes."""

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        precision: str,
        channels_last: bool,
    ) -> None:
        """Keeps mean and std of RGB in [0, 1]; for the other arguments see `Forward`."""
        super().__init__(network, precision, channels_last)
        self.mean = mean
        self.std = std

    def normalize(self, images: Tensor) -> Tensor:
        """Maps uint8 [batch, 3, height, width] to float32, normalized by mean and std."""
        return normalize(images, self.mean, self.std)


class MethodForward(Forward):
    """The forward pass of a self-supervised method: augmentation, network, losses."""

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        precision: str,
        channels_last: bool,
        micro_batch_size: int | None,
        total_steps: int,
    ) -> None:
        """Keeps the method beside its network; for the other arguments see `Forward`.

        Args:
          method: of which `network` is the network.
          network: with initial weights, the same on every rank.
          precision: see `Forward`.
          channels_last: see `Forward`.
          micro_batch_size: images that the network sees at once; None for the whole local
            batch. Losses and gradients are those of the whole batch in any case; batch
            normalization uses the statistics of a micro-batch, over all ranks.
          total_steps: of the whole schedule.
        """
        super().__init__(network, precision, channels_last)
        self.method = method
        self._total_steps = total_steps
        self._micro_batch_size = micro_batch_size
        self._encode: Callable[..., tuple[Tensor, ...]] = self._apply_to_crops
        self._compare: Callable[..., Any] = method.losses

    def compile_graphs(self) -> None:
        """Makes the first call compile; with micro-batches, encoding and losses separately."""
        if self._micro_batch_size is None:
            super().compile_graphs()
            return
        self._encode = torch.compile(self._apply_to_crops, fullgraph=True, dynamic=False)
        self._compare = torch.compile(self.method.losses, fullgraph=True, dynamic=False)

    def forward(
        self,
        crops: Tensor,
        augmentation: Draws,
        targets: tuple[Tensor, ...],
        single: bool = False,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Returns losses and outputs of this rank; for the arguments see `StepInputs`."""
        outputs = self._outputs(crops, augmentation, single)
        return self._compare(outputs, targets), tuple(value.detach() for value in outputs)

    def _outputs(self, crops: Tensor, augmentation: Draws, single: bool) -> tuple[Tensor, ...]:
        if self._micro_batch_size is None:
            return self._encode(crops, augmentation, single)
        rows = self._micro_batch_size * self.method.crops_per_image
        outputs = [
            recompute(self._encode, self.network, piece, tuple(drawn), single)
            for piece, *drawn in zip(
                crops.split(rows), *(values.split(rows) for values in augmentation), strict=True
            )
        ]
        return tuple(map(torch.cat, zip(*outputs, strict=True)))

    def update_state(self, outputs: Any, step: int) -> None:
        """Updates the method's state, such as a momentum teacher, after the optimizer step."""
        self.method.update_state(self.network, outputs, step, self._total_steps)

    def measures(self, outputs: Any, inputs: Any) -> dict[str, Tensor]:
        """Returns the measures of the method; inputs are `StepInputs`."""
        return self.method.measures(outputs, inputs.targets)

    def _apply_to_crops(
        self, crops: Tensor, augmentation: Draws, single: bool
    ) -> tuple[Tensor, ...]:
        augmented = self.method.augmentation(crops, augmentation)
        images = augmented if single else self.method.network_inputs(augmented)
        # Most networks have no such argument.
        options = {"single": True} if single else {}
        outputs: tuple[Tensor, ...] = self.apply_network(images, **options)
        return outputs
