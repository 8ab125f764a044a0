"""The protocol of a self-supervised method: all of pre-training that depends on the method.

A new method is one file here and one gin base. It is a frozen dataclass of its
hyperparameters, checked in `__post_init__`; the pre-training task does the rest:
reading, augmentation, compilation, gradients over all ranks, checkpoints and reports.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from jigclu.data.crops import CropDataset
from jigclu.data.sources import Source
from jigclu.models.encoder import Encoder
from jigclu.ops.augment import Augmentation, Draws


class StepInputs(NamedTuple):
    """Inputs of one training step on one rank, on its device.

    crops: uint8 [local_batch * crops_per_image, 3, size, size], not yet augmented.
    augmentation: draws of the augmentation, one row per crop.
    targets: tensors that the losses need beside the network's outputs, such as a permutation.
    single: whether the network maps the augmented crops one by one, with the argument single=True,
      instead of what `network_inputs` makes of them. Each kind of step is compiled once.
    """

    crops: Tensor
    augmentation: Draws
    targets: tuple[Tensor, ...]
    single: bool = False


class Method(Protocol):
    """A self-supervised method.

    State of a method lives in its network, and thus in checkpoints: a queue is a buffer, a
    momentum teacher is a module whose parameters do not require gradients. Only `update_state`
    changes it, after each step: the backward pass of a compiled graph may read state again.
    """

    @property
    def loss_may_rise(self) -> bool:
        """Whether the loss may rise while the network learns, as with a moving target."""

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of every crop."""

    @property
    def crops_per_image(self) -> int:
        """Number of crops of every image; fixes how many rows of outputs belong to an image."""

    def check_run(self, encoder: Encoder, epochs: float, batch_size: int, graphs: int) -> None:
        """Raises UserError if the method does not fit the run.

        Args:
          encoder: on the meta device, in eval mode.
          epochs: of the run.
          batch_size: images of the global batch.
          graphs: that torch.compile makes of the network for each size of its images: 1, or 2 with
            micro-batches; 0 without torch.compile.
        """

    def summary(self, images: int) -> str:
        """Returns one line of the plan: what the encoder sees of a number of images."""

    def dataset(self, source: Source, seed: int, batch_size: int) -> CropDataset:
        """Returns the training images of a source, cropped; batch_size is that of all ranks."""

    def network(self, encoder: Encoder) -> nn.Module:
        """Adds the method's heads; the result keeps the encoder as its attribute `encoder`."""

    def step_inputs(self, crops: Tensor, seed: int, step: int) -> StepInputs:
        """Prepares a step: a function of the crops and of (seed, step) on any number of ranks.

        Args:
          crops: uint8 [local_batch, crops_per_image, 3, size, size] of this rank, on its device.
          seed: of the run.
          step: counted from 0.
        """

    def network_inputs(self, crops: Tensor) -> Tensor:
        """Turns augmented crops, float32 [rows, 3, size, size], into images for the network.

        Rows belong to whole images, all of them or those of a micro-batch.
        """

    def losses(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Any:
        """Returns a NamedTuple of scalars float32 [], the loss to minimize first.

        Each is the mean over the crops of this rank. Embeddings of other ranks come from
        `collectives.gather_with_gradient`. Compiled with the forward pass: no data-dependent
        branches, nothing that waits for the device.

        Args:
          outputs: of the network, each with the same number of rows per image, in the order of
            crops. Micro-batches pass a gradient to every output that depends on trained
            parameters; detach what must not receive one.
          targets: of the step inputs.
        """

    def measures(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Measures what the network has learned; see `losses` for the arguments.

        Called on all ranks after some steps only, without gradients, so that it may wait for the
        device.

        Returns:
          By name, scalars [], or confusions int64 [places, places] with the truth as rows: of
          the global batch, thus the same on every rank.
        """

    def encoder_features(
        self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Returns the encoder's features of this rank's crops, and the image of each.

        Args:
          outputs: see `losses`.
          targets: see `losses`.

        Returns:
          [rows, channels], and int64 [rows]: the number of the image in the global batch.
        """

    def update_state(
        self, network: nn.Module, outputs: tuple[Tensor, ...], step: int, total_steps: int
    ) -> None:
        """Updates the method's state in place after the optimizer step, without gradients.

        Args:
          network: of the method; its state must stay the same on every rank.
          outputs: of the network in this step, detached.
          step: counted from 0.
          total_steps: of the whole schedule.
        """

    def chance(self, batch_size: int) -> dict[str, float]:
        """Returns the values of some losses and measures if the network has learned nothing.

        Args:
          batch_size: images of the global batch.
        """

    def floor(self, batch_size: int) -> dict[str, float]:
        """Returns the least possible values of losses, where these are not 0.

        Args:
          batch_size: images of the global batch.
        """

    def draw(self, inputs: StepInputs) -> Tensor:
        """Draws the first images as the network sees them: uint8 [3, height, width]."""


Network = Callable[..., tuple[Tensor, ...]]


@runtime_checkable
class DrawsPredictions(Protocol):
    """A method that also draws what its network predicts for a few fixed images."""

    def draw_predictions(
        self, network: Network, dataset: CropDataset, seed: int, device: torch.device
    ) -> Tensor:
        """Draws predictions, the same images every time: uint8 [3, height, width].

        Called without gradients, perhaps not on all ranks.

        Args:
          network: maps images for the network, perhaps with single=True, to its outputs, in eval
            mode.
          dataset: of the method, with the training images.
          seed: of the run.
          device: of images for the network.
        """
