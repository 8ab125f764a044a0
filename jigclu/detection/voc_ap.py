"""VOC's average precision of one class (Everingham et al., IJCV 2010, section 4.2)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from detectron2.evaluation.pascal_voc_evaluation import voc_ap

from jigclu.detection.datasets import Box
from jigclu.detection.voc_layout import VocObject


class Prediction(NamedTuple):
    """A predicted box of the class in an image."""

    image: str
    score: float
    box: Box


def average_precisions(
    predictions: Sequence[Prediction],
    objects: Mapping[str, Sequence[VocObject]],
    overlaps: Sequence[float],
    *,
    is_2007: bool,
) -> list[float]:
    """Returns the average precision in [0, 1] at each overlap.

    Of several predictions of an object only the one with the highest score counts as correct;
    predictions of difficult objects do not count.

    Args:
      predictions: predictions of the class.
      objects: annotated objects of the class in each image; one must not be difficult.
      overlaps: intersection over union that a correct prediction must exceed.
      is_2007: whether to use the 11-point rule of VOC 2007 instead of the area below the curve.
    """
    # Ordered as in detectron2, whose sort is not stable.
    order = np.argsort([-prediction.score for prediction in predictions])
    ranked = [predictions[number] for number in order]
    best = [_best(prediction, objects[prediction.image]) for prediction in ranked]
    total = sum(not found.is_difficult for image in objects.values() for found in image)
    precisions = []
    for least in overlaps:
        # Images and places of the found objects.
        seen = set()
        correct, wrong = np.zeros((2, len(ranked)))
        for number, (overlap, place) in enumerate(best):
            image = ranked[number].image
            if overlap <= least or (image, place) in seen:
                wrong[number] = 1
            elif not objects[image][place].is_difficult:
                seen.add((image, place))
                correct[number] = 1
        hits, misses = correct.cumsum(), wrong.cumsum()
        # Predictions of difficult objects may come first.
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).eps)
        precisions.append(float(voc_ap(hits / total, precision, is_2007)))
    return precisions


def _best(prediction: Prediction, objects: Sequence[VocObject]) -> tuple[float, int]:
    """Returns the highest overlap with an object, and the place of that object."""
    overlaps = [_overlap(prediction.box, found.box) for found in objects]
    highest = max(overlaps, default=0.0)
    return highest, overlaps.index(highest) if overlaps else 0


def _overlap(first: Box, second: Box) -> float:
    """Returns the intersection over union of two boxes."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    intersection = max(width, 0.0) * max(height, 0.0)
    union = first.area() + second.area() - intersection
    return intersection / union if union else 0.0
