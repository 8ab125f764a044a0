"""Classification accuracy from counts, which add up over batches and ranks."""

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Counts of predictions; the counts of disjoint sets of images add up.

    confusion: int64 [classes, classes], images by true class (row) and predicted class (column).
    in_top5: int64 [], images whose true class is among the five most likely.
    """

    confusion: Tensor
    in_top5: Tensor


class Scores(NamedTuple):
    """Accuracies in [0, 1].

    top1: share of images whose most likely class is correct.
    top5: share of images with the correct class among the five most likely.
    per_class: float64 [classes], top1 of the images of each class; nan without images.
    """

    top1: float
    top5: float
    per_class: Tensor


def no_counts(classes: int, device: torch.device) -> Counts:
    """Returns counts of zero images."""
    return Counts(
        torch.zeros(classes, classes, dtype=torch.int64, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
    )


def confuse(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Returns int64 [classes, classes]: images by true class (row) and predicted class (column).

    Args:
      labels: int64 [images], in [0, classes).
      predicted: likewise.
      classes: number of classes.
    """
    cells = labels * classes + predicted
    return cells.bincount(minlength=classes**2).view(classes, classes)


def add(counts: Counts, logits: Tensor, labels: Tensor) -> Counts:
    """Adds a batch of predictions to the counts.

    Args:
      counts: of the images so far.
      logits: [batch, classes].
      labels: int64 [batch], in [0, classes).
    """
    classes = logits.shape[1]
    ranked = logits.topk(min(5, classes), 1).indices
    confusion = confuse(labels, ranked[:, 0], classes)
    in_top5 = (ranked == labels[:, None]).sum()
    return Counts(counts.confusion + confusion, counts.in_top5 + in_top5)


def to_scores(counts: Counts) -> Scores:
    """Computes accuracies from counts."""
    images = counts.confusion.sum(1).double()
    correct = counts.confusion.diagonal().double()
    return Scores(
        top1=(correct.sum() / images.sum()).item(),
        top5=(counts.in_top5 / images.sum()).item(),
        per_class=(correct / images).cpu(),
    )
