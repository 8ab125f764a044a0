"""How often a classifier is right, counted so that ranks can add up what each has seen."""

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """What a classifier said of some images; counts of disjoint images add up.

    confusion: int64 [classes, classes], images by true class and the likeliest one.
    in_top5: int64 [], images whose class is among the five likeliest.
    """

    confusion: Tensor
    in_top5: Tensor


class Scores(NamedTuple):
    """Shares of images classified correctly, in [0, 1].

    top1: by the likeliest class.
    top5: by the five likeliest.
    per_class: float64 [classes], by the likeliest; nan for a class without images.
    """

    top1: float
    top5: float
    per_class: Tensor


def no_counts(classes: int, device: torch.device) -> Counts:
    """Returns the counts of no images."""
    return Counts(
        torch.zeros(classes, classes, dtype=torch.int64, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
    )


def add(counts: Counts, logits: Tensor, labels: Tensor) -> Counts:
    """Returns the counts with those of more images.

    Args:
      counts: so far.
      logits: [batch, classes].
      labels: int64 [batch], from 0.
    """
    classes = logits.shape[1]
    likeliest = logits.topk(min(5, classes), 1).indices
    cells = labels * classes + likeliest[:, 0]
    confusion = cells.bincount(minlength=classes**2).view(classes, classes)
    in_top5 = (likeliest == labels[:, None]).sum()
    return Counts(counts.confusion + confusion, counts.in_top5 + in_top5)


def to_scores(counts: Counts) -> Scores:
    """Returns the scores that counts come to."""
    images = counts.confusion.sum(1).double()
    right = counts.confusion.diagonal().double()
    return Scores(
        top1=(right.sum() / images.sum()).item(),
        top5=(counts.in_top5 / images.sum()).item(),
        per_class=(right / images).cpu(),
    )
