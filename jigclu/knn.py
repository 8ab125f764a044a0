"""Weighted nearest neighbours: how well frozen features tell classes apart, without training."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Subset

from jigclu import collectives
from jigclu.data.images import ImageDataset
from jigclu.data.loader import image_loader
from jigclu.data.sources import Source
from jigclu.encoder import Encoder
from jigclu.errors import UserError

_CHUNK = 1024  # Queries compared at once: bounds the memory of the similarities.


class Score(NamedTuple):
    """Share of images classified correctly, and what guessing the commonest class gives."""

    accuracy: float
    chance: float


def predict(
    queries: Tensor, bank: Tensor, labels: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """Classifies by a vote of the nearest, each weighing exp(cosine / temperature).

    The rule of Wu et al. 2018 (arXiv 1805.01978, section 3.4).

    Args:
      queries: float32 [queries, channels], L2-normalised.
      bank: float32 [bank, channels], L2-normalised.
      labels: int64 [bank], from 0.
      neighbours: that vote, at most bank.
      temperature: > 0 (usual 0.07).

    Returns:
      int64 [queries]: the class of the most votes.
    """
    classes = functional.one_hot(labels).to(bank.dtype)
    predictions = []
    for chunk in queries.split(_CHUNK):
        similarity, nearest = (chunk @ bank.t()).topk(neighbours, 1)
        weights = ((similarity - 1) / temperature).exp()
        predictions.append(torch.einsum("qn,qnc->qc", weights, classes[nearest]).argmax(1))
    return torch.cat(predictions)


@dataclass(frozen=True, kw_only=True)
class KnnEvaluation:
    """kNN accuracy of an encoder on a labelled data set.

    bank: images with known classes; queries: images to classify.
    resize, crop: pixels, of `ImageDataset`. mean, std: of RGB in [0, 1].
    neighbours, temperature: of `predict`. batch_size: images, of one rank.
    workers: processes that read images.
    """

    bank: Source
    queries: Source
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    neighbours: int
    temperature: float
    batch_size: int
    workers: int

    def check(self) -> None:
        """Raises UserError for a value out of range, or data that fit not together."""
        for name, source in (("bank", self.bank), ("queries", self.queries)):
            ImageDataset(source=source, resize=self.resize, crop=self.crop)
            if source.labels is None:
                raise UserError(f"knn.{name} has no labels; kNN needs a data set with classes")
        if self.bank.classes != self.queries.classes:
            differing = sorted(set(self.bank.classes) ^ set(self.queries.classes))
            raise UserError(
                f"knn.bank has {len(self.bank.classes)} classes and knn.queries "
                f"{len(self.queries.classes)}; they must be the same, not in both: "
                f"{', '.join(differing[:5])}"
            )
        if not 1 <= self.neighbours <= len(self.bank):
            raise UserError(
                f"knn.neighbours is {self.neighbours}; it must lie in [1, {len(self.bank)}], "
                "the images of the bank"
            )
        if not self.temperature > 0:
            raise UserError(f"knn.temperature is {self.temperature}; it must be above 0")

    def __call__(self, encoder: Encoder, device: torch.device, precision: torch.dtype) -> Score:
        """Scores an encoder, which every rank holds alike; leaves its mode as it was.

        Args:
          encoder: on the device.
          device: where to compute.
          precision: of autocast within the encoder; float32 for none.
        """
        bank, queries = (
            self._features(source, encoder, device, precision) for source in self._sources()
        )
        bank_labels, query_labels = (
            torch.tensor(source.labels, device=device) for source in self._sources()
        )
        predicted = predict(queries, bank, bank_labels, self.neighbours, self.temperature)
        return Score(
            accuracy=(predicted == query_labels).float().mean().item(),
            chance=query_labels.bincount().max().item() / len(query_labels),
        )

    def _sources(self) -> tuple[Source, Source]:
        return self.bank, self.queries

    def _features(
        self, source: Source, encoder: Encoder, device: torch.device, precision: torch.dtype
    ) -> Tensor:
        """Returns the normalised pooled features of all images, on every rank."""
        mean, std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (self.mean, self.std)
        )
        features = torch.zeros(len(source), encoder.channels, device=device)
        images = ImageDataset(source=source, resize=self.resize, crop=self.crop)
        own = Subset(images, range(collectives.rank(), len(source), collectives.world_size()))
        was_training = encoder.training
        encoder.eval()
        autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
        with torch.no_grad():
            for batch in image_loader(own, self.batch_size, self.workers):
                pixels = batch.image.to(device, non_blocking=True).float() / 255
                with autocast:
                    maps = encoder((pixels - mean) / std)
                pooled = maps.float().mean((2, 3))
                features[batch.image_index.to(device)] = functional.normalize(pooled, dim=1)
        encoder.train(was_training)
        if collectives.world_size() > 1:
            # Every row was filled by one rank and is 0 elsewhere.
            dist.all_reduce(features)
        return features
