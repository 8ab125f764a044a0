"""Weighted nearest-neighbor classification of frozen features, without training.

The bank is streamed; only the nearest neighbors of every query are kept, so a bank of any
size fits into memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.data.images import ImageDataset, read_error
from jigclu.data.loader import LabeledBatch
from jigclu.data.sources import Source
from jigclu.data.subsets import check_labeled
from jigclu.data.transform import EvalTransform
from jigclu.models.encoder import Encoder
from jigclu.ops import metrics
from jigclu.system import collectives
from jigclu.system.errors import check
from jigclu.training.bad_samples import Unreadable
from jigclu.training.evaluation_report import (
    NEIGHBORS,
    POINTS,
    QUERIES,
    EvaluationReport,
    choose_evenly,
)
from jigclu.training.features import FeatureSettings, choose_settings, encode
from jigclu.training.settings import Loading

# Queries and images of the bank that are compared at once, which bounds the memory.
_QUERIES = 1024
_BANK = 8192


class Nearest(NamedTuple):
    """Nearest neighbors of every query so far.

    similarity: float32 [queries, neighbors], cosines in decreasing order; -inf if missing.
    images: int64 [queries, neighbors], their indices in the bank.
    """

    similarity: Tensor
    images: Tensor


def empty_nearest(queries: int, neighbors: int, device: torch.device) -> Nearest:
    """Returns the nearest neighbors in an empty bank."""
    return Nearest(
        torch.full((queries, neighbors), -torch.inf, device=device),
        torch.zeros(queries, neighbors, dtype=torch.int64, device=device),
    )


def update_nearest(nearest: Nearest, queries: Tensor, bank: Tensor, index: Tensor) -> Nearest:
    """Returns the nearest neighbors after one more piece of the bank.

    Args:
      nearest: neighbors so far.
      queries: float32 [queries, channels], L2-normalized.
      bank: float32 [piece, channels], L2-normalized.
      index: int64 [piece], of the images in the whole bank.
    """
    pieces = []
    for rows in torch.arange(len(queries), device=queries.device).split(_QUERIES):
        similarity = queries[rows] @ bank.t()
        pieces.append(
            _keep_nearest(
                torch.cat([nearest.similarity[rows], similarity], 1),
                torch.cat([nearest.images[rows], index.expand(len(rows), -1)], 1),
                nearest.images.shape[1],
            )
        )
    return Nearest(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _keep_nearest(similarity: Tensor, images: Tensor, neighbors: int) -> Nearest:
    kept, positions = similarity.topk(neighbors, 1)
    return Nearest(kept, images.gather(1, positions))


def merge_ranks(nearest: Nearest) -> Nearest:
    """Returns the nearest neighbors in the banks of all ranks, on every rank."""
    merged = [
        _keep_nearest(
            collectives.gather(similarity, dim=1),
            collectives.gather(images, dim=1),
            nearest.images.shape[1],
        )
        for similarity, images in zip(*(v.split(_QUERIES) for v in nearest), strict=True)
    ]
    return Nearest(*(torch.cat(parts) for parts in zip(*merged, strict=True)))


def vote(nearest: Nearest, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Classifies by a vote of the nearest neighbors with weights exp(cosine / temperature).

    The rule of Wu et al. 2018 (arXiv 1805.01978, section 3.4).

    Args:
      nearest: neighbors of every query, the nearest first.
      labels: int64 [bank], of the images of the bank.
      classes: number of classes.
      temperature: > 0 (usually 0.07).

    Returns:
      int64 [queries], the class with the largest sum of weights.
    """
    # Only ratios count. Relative to the nearest neighbor, weights do not underflow to 0.
    weights = ((nearest.similarity - nearest.similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), classes)
    return votes.scatter_add_(1, labels[nearest.images], weights).argmax(1)


@dataclass(frozen=True, kw_only=True)
class KnnEvaluator:
    """kNN accuracy of an encoder on a labeled data set; gin/base/knn.gin describes each setting.

    Attributes:
      every: epochs between evaluations; 0 for none between the first and the last step.
      bank: images with known classes.
      queries: images to classify.
      eval_transform: preprocessing of both.
      neighbors: number of neighbors that vote, at most the size of the bank.
      temperature: of the votes, see `vote`.
      batch_size: images per device and batch.
      skip_unreadable: whether unreadable images are left out, with a warning, or are an error.
      loading: worker processes.
    """

    every: int
    bank: Source
    queries: Source
    eval_transform: EvalTransform
    neighbors: int
    temperature: float
    batch_size: int
    skip_unreadable: bool
    loading: Loading

    def __post_init__(self) -> None:
        check(self.every >= 0, "every", self.every, "0 or more epochs")
        check_labeled(self.bank, self.queries, "bank", "queries")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        images = len(self.bank)
        expected = f"in [1, {images}], the number of images of the bank"
        check(1 <= self.neighbors <= images, "neighbors", self.neighbors, expected)
        check(self.temperature > 0, "temperature", self.temperature, "above 0")

    def __call__(
        self, encoder: Encoder, precision: torch.dtype, report: EvaluationReport | None = None
    ) -> dict[str, float]:
        """Returns knn_accuracy and knn_accuracy_chance, the share of the most frequent class.

        Every rank calls it with the same encoder, whose mode stays as it was. The device holds
        the features of all queries, and pieces of the bank.

        Args:
          encoder: on the device on which to compute.
          precision: of autocast in the encoder; float32 for none.
          report: receives pictures; None for none.
        """
        settings = self._settings(next(encoder.parameters()).device, precision)
        queries, readable = self._all_queries(encoder, settings)
        nearest = empty_nearest(len(queries), self.neighbors, queries.device)
        for piece, index in _pieces(self._encode(encoder, self.bank, settings)):
            nearest = update_nearest(nearest, queries, functional.normalize(piece, dim=1), index)
        nearest = merge_ranks(nearest)
        classes = self.bank.classes
        bank_labels, labels = (
            torch.tensor(source.labels, device=queries.device)
            for source in (self.bank, self.queries)
        )
        predicted = vote(nearest, bank_labels, len(classes), self.temperature)[readable]
        if report is not None:
            confusion = metrics.confuse(labels[readable], predicted, len(classes))
            report.confusion("knn_confusion", confusion, classes)
            self._show(report, readable.nonzero().flatten(), queries, nearest)
        return {
            "knn_accuracy": (predicted == labels[readable]).float().mean().item(),
            "knn_accuracy_chance": labels[readable].bincount().max().item() / len(predicted),
        }

    def _show(
        self, report: EvaluationReport, readable: Tensor, queries: Tensor, nearest: Nearest
    ) -> None:
        """Shows the nearest neighbors of some queries, and the embedding of more at the end.

        Args:
          report: receives them.
          readable: int64 [readable], indices of queries.
          queries: features of all queries.
          nearest: neighbors of all queries.
        """
        images, bank = (
            ImageDataset(source=source, transform=self.eval_transform, skip_unreadable=True)
            for source in (self.queries, self.bank)
        )
        shown = readable[choose_evenly(len(readable), QUERIES)]
        neighbors = nearest.images[shown, :NEIGHBORS].tolist()
        pairs = dict(zip(shown.tolist(), neighbors, strict=True))
        report.neighbors("knn_neighbors", images, bank, pairs)
        if report.is_last:
            points = readable[choose_evenly(len(readable), POINTS)]
            report.embedding("knn", images, points.tolist(), queries[points])

    def _settings(self, device: torch.device, precision: torch.dtype) -> FeatureSettings:
        name = "knn_evaluator.batch_size"
        return choose_settings(
            self.eval_transform, self.batch_size, self.loading, device, precision, name
        )

    def _encode(
        self, encoder: Encoder, source: Source, settings: FeatureSettings
    ) -> Iterator[tuple[Tensor, LabeledBatch]]:
        """Yields features with their batches as `encode`, then reports unreadable images.

        Raises:
          UserError: too many images are unreadable.
        """
        images = ImageDataset(
            source=source, transform=self.eval_transform, skip_unreadable=self.skip_unreadable
        )
        unreadable = Unreadable(source, self.loading.most_unreadable)
        for features, batch in encode(encoder, images, settings):
            skipped = batch.image_index[batch.label < 0].tolist()
            unreadable.add({index: read_error(source, index) for index in skipped})
            yield features, batch
        unreadable.exchange()

    def _all_queries(self, encoder: Encoder, settings: FeatureSettings) -> tuple[Tensor, Tensor]:
        """Returns the normalized features of all queries, on every rank, and which are readable."""
        device = next(encoder.parameters()).device
        queries = torch.zeros(len(self.queries), encoder.channels, device=device)
        readable = torch.zeros(len(self.queries), device=device)
        for piece, batch in self._encode(encoder, self.queries, settings):
            rows = batch.image_index.to(device)
            queries[rows] = functional.normalize(piece, dim=1)
            readable[rows] = (batch.label >= 0).float().to(device)
        # Each row is filled by one rank, and 0 on all others.
        return collectives.sum_over_ranks(queries), collectives.sum_over_ranks(readable) > 0


def _pieces(
    batches: Iterable[tuple[Tensor, LabeledBatch]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Joins features of readable images into larger pieces, each with the indices of its images."""
    joined: list[Tensor] = []
    indices: list[Tensor] = []
    for piece, batch in batches:
        kept = batch.label >= 0
        joined.append(piece[kept.to(piece.device)])
        indices.append(batch.image_index[kept].to(piece.device))
        if sum(map(len, joined)) >= _BANK:
            yield torch.cat(joined), torch.cat(indices)
            joined, indices = [], []
    if joined:
        yield torch.cat(joined), torch.cat(indices)
