"""Scores of semantic segmentation from counts of pixels, which add up over images and ranks."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.system.errors import UserError

IGNORED = 255  # Mask value of pixels without a class, as in VOC.


class SegmentationScores(NamedTuple):
    """Scores in [0, 1].

    mean_iou: mean intersection over union of the classes that occur, that is, of those with
      pixels in the ground truth or in the predictions.
    pixel_accuracy: share of pixels whose predicted class is correct.
    iou: float64 [classes], intersection over union; nan for classes that do not occur.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: Tensor


def upsample(maps: Tensor, height: int, width: int) -> Tensor:
    """Resizes [batch, classes, ...] bilinearly to float32 [batch, classes, height, width]."""
    return functional.interpolate(maps.float(), (height, width), mode="bilinear")


def count_pixels(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts pixels by true class (row) and predicted class (column): int64 [classes, classes].

    Args:
      predicted: int64 of any shape, in [0, classes).
      truth: uint8 of the same shape, in [0, classes) or `IGNORED`; ignored pixels do not count.
      classes: number of classes.
    """
    counted = truth != IGNORED
    cells = truth[counted].long() * classes + predicted[counted]
    return cells.bincount(minlength=classes**2).view(classes, classes)


def to_scores(confusion: Tensor) -> SegmentationScores:
    """Computes scores from counts of pixels (Everingham et al., IJCV 2015, section 4.2).

    VOC's rule, except that classes that do not occur are left out of the mean instead of
    counting as 0.

    Args:
      confusion: int64 [classes, classes], the sum of `count_pixels` over all images.

    Raises:
      UserError: no pixel has a class.
    """
    counts = confusion.double().cpu()
    if counts.sum() == 0:
        raise UserError("val has no pixel with a class: every pixel of its masks is ignored")
    correct = counts.diagonal()
    # 0 / 0 for a class that does not occur.
    iou = correct / (counts.sum(0) + counts.sum(1) - correct)
    return SegmentationScores(
        mean_iou=torch.nanmean(iou).item(),
        pixel_accuracy=(correct.sum() / counts.sum()).item(),
        iou=iou,
    )
