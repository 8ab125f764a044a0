"""Pictures of an evaluation of features: confusions, nearest neighbors, and an embedding."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.images import ImageDataset
from jigclu.ops.pictures import confusion_picture, neighbors_picture
from jigclu.training.monitor import Monitor

QUERIES = 8
NEIGHBORS = 8
POINTS = 500  # Of an embedding.
_THUMBNAIL = 32  # Side in pixels.


class EvaluationReport(NamedTuple):
    """Receives what an evaluation shows beside its scores; the same calls on every rank.

    monitor: of the run.
    step: steps taken so far.
    """

    monitor: Monitor
    step: int

    @property
    def is_last(self) -> bool:
        """Whether this is the evaluation after the last step, which also shows an embedding."""
        return self.step == self.monitor.total_steps

    def confusion(self, name: str, confusion: Tensor, classes: Sequence[str]) -> None:
        """Shows which classes are mistaken for which, int64 [classes, classes]; truth as rows."""
        self.monitor.image(name, self.step, confusion_picture(confusion, classes))

    def neighbors(
        self,
        name: str,
        queries: ImageDataset,
        bank: ImageDataset,
        nearest: Mapping[int, Sequence[int]],
    ) -> None:
        """Shows images with their nearest neighbors.

        Args:
          name: of the picture.
          queries: preprocessed images with labels.
          bank: likewise.
          nearest: indices of neighbors in the bank by index of the query, equally many of each.
        """
        if not self.monitor.is_main:
            return
        shown = [queries[index] for index in nearest]
        found = [[bank[index] for index in indices] for indices in nearest.values()]
        own = torch.tensor([query.label for query in shown])
        others = torch.tensor([[image.label for image in row] for row in found])
        picture = neighbors_picture(
            torch.stack([query.image for query in shown]),
            torch.stack([torch.stack([image.image for image in row]) for row in found]),
            others == own[:, None],
        )
        self.monitor.image(name, self.step, picture)

    def embedding(
        self, name: str, images: ImageDataset, indices: Sequence[int], features: Tensor
    ) -> None:
        """Shows features in TensorBoard's projector, with thumbnails and classes.

        Args:
          name: of the embedding.
          images: preprocessed images with labels.
          indices: of the images to show.
          features: float32 [indices, channels].
        """
        if not self.monitor.is_main:
            return
        shown = [images[index] for index in indices]
        thumbnails = [
            transforms.resize(image.image, [_THUMBNAIL, _THUMBNAIL], antialias=True)
            for image in shown
        ]
        classes = [images.source.classes[image.label] for image in shown]
        self.monitor.embedding(name, self.step, features, torch.stack(thumbnails), classes)


def choose_evenly(count: int, most: int) -> list[int]:
    """Returns up to `most` of `count` numbers from 0, evenly spaced."""
    shown = min(count, most)
    return [number * count // shown for number in range(shown)]
