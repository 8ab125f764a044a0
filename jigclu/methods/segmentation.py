"""Supervised segmentation: inputs of a step, and the forward pass to the cross-entropy."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from jigclu.methods.forward import NormalizingForward
from jigclu.ops.segmentation import IGNORED, upsample
from jigclu.system import collectives


class SegmentationInputs(NamedTuple):
    """Inputs of one training step on one rank, on its device.

    images: uint8 [local_batch, 3, size, size].
    masks: uint8 [local_batch, size, size], class numbers or `IGNORED`.
    pixels: float32 [], pixels with a class in the global batch, divided by the number of ranks.
    """

    images: Tensor
    masks: Tensor
    pixels: Tensor


class SegmentationLosses(NamedTuple):
    """Scalars float32 [] of one rank, whose mean over ranks is the mean over all pixels."""

    loss: Tensor
    accuracy: Tensor


def segmentation_inputs(images: Tensor, masks: Tensor) -> SegmentationInputs:
    """Returns the inputs of a step, for which ranks exchange their numbers of pixels."""
    pixels = collectives.mean_over_ranks((masks != IGNORED).sum().float())
    # Without any pixel, the loss is 0 instead of NaN.
    return SegmentationInputs(images, masks, pixels.clamp_min(1))


class SegmenterForward(NormalizingForward):
    """The forward pass of a segmenter: normalization, network, upsampling, cross-entropy."""

    def logits(self, images: Tensor, height: int, width: int) -> Tensor:
        """Maps uint8 [batch, 3, ...] to logits float32 [batch, classes, height, width]."""
        maps = self.apply_network(self.normalize(images))
        return upsample(maps, height, width)

    def forward(
        self, images: Tensor, masks: Tensor, pixels: Tensor
    ) -> tuple[SegmentationLosses, tuple[()]]:
        """Returns this rank's losses; for the arguments see `SegmentationInputs`."""
        logits, truth = self.logits(images, *masks.shape[1:]), masks.long()
        loss = functional.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum")
        # No class has the number IGNORED.
        correct = (logits.argmax(1) == truth).sum()
        return SegmentationLosses(loss / pixels, correct / pixels), ()
