"""Bytes that the ranks of a run exchange per step; computed, not measured."""

from collections.abc import Sequence
from typing import NamedTuple

from jigclu.tasks.benchmark.noise_steps import NetworkSize
from jigclu.tasks.benchmark.workload import Workload


class Received(NamedTuple):
    """Expected bytes that a rank receives from others per step, by kind."""

    patches: float
    embeddings: float
    statistics: float
    gradients: float


class Exchange(NamedTuple):
    """Data that one of several ranks receives per step.

    published_patches: bytes of patches in the published code; the rest is taken to be equal.
    """

    ranks: int
    received: Received
    published_patches: float


def compute_exchange(
    workload: Workload, network: NetworkSize, ranks: Sequence[int]
) -> list[Exchange]:
    """Computes what a rank receives, for several numbers of ranks."""
    return [
        Exchange(
            count,
            bytes_received(workload, network, count),
            published_patches_received(workload, count),
        )
        for count in ranks
    ]


def bytes_received(workload: Workload, network: NetworkSize, ranks: int) -> Received:
    """Returns what a rank receives if every rank has batch_size / ranks images.

    Sums are assumed to use a ring, in which every rank receives each tensor twice, except
    for its own share.
    """
    others = (ranks - 1) / ranks
    embeddings = 4 * workload.patches * workload.embedding_channels * others
    return Received(
        # A patch is equally likely to move to any rank, and its bytes move once.
        patches=workload.patches / ranks * 3 * workload.patch_size**2 * others,
        # To every rank, and their gradients back.
        embeddings=2 * embeddings,
        # Means and variances of every rank, in float32, and their gradients back.
        statistics=2 * 4 * network.statistics * (ranks - 1),
        gradients=2 * 4 * network.parameters * others,
    )


def published_patches_received(workload: Workload, ranks: int) -> float:
    """Returns the bytes of patches in the published code: all patches, in float32."""
    return 4.0 * workload.patches * 3 * workload.patch_size**2 * (ranks - 1) / ranks
