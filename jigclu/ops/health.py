"""Measures of what embeddings and features have learned, which need no labels."""

from typing import NamedTuple

import torch
from torch import Tensor

# Crops whose neighbors are searched, and rows of which the rank is taken: bound time and memory.
_ANCHORS = 2048
_RANK_ROWS = 512


class EmbeddingHealth(NamedTuple):
    """Measures of the embeddings of one global batch, scalars float32 [].

    retrieval: share of crops whose nearest other crop is of the same image.
    sibling_cosine: mean cosine of two crops of one image, in [-1, 1].
    other_cosine: mean cosine of crops of different images.
    alignment: mean squared distance of two crops of one image, >= 0 (Wang and Isola, ICML 2020,
      equation 1).
    uniformity: log of the mean of exp(-2 * squared distance) over crops of different images,
      <= 0 (likewise, equation 2).
    embedding_deviation: see `deviation`.
    embedding_rank: effective rank, see `effective_rank`.
    """

    retrieval: Tensor
    sibling_cosine: Tensor
    other_cosine: Tensor
    alignment: Tensor
    uniformity: Tensor
    embedding_deviation: Tensor
    embedding_rank: Tensor


def nearest_others(embeddings: Tensor) -> Tensor:
    """Returns for each row the most similar other row, int64 [rows].

    Args:
      embeddings: float [rows, channels], L2-normalized; two rows or more.
    """
    similarity = embeddings @ embeddings.t()
    return similarity.fill_diagonal_(-torch.inf).argmax(1)


NAMES = (*EmbeddingHealth._fields[1:], "feature_rank")


@torch.no_grad()
def embedding_health(embeddings: Tensor) -> EmbeddingHealth:
    """Measures the embeddings of a global batch.

    The first 2,048 crops, of whole images, are compared with all crops.

    Args:
      embeddings: float [images, crops, channels], L2-normalized; two images or more, two crops
        or more.
    """
    images, crops, _ = embeddings.shape
    flat = embeddings.float().flatten(0, 1)
    anchors = min(images, max(1, _ANCHORS // crops)) * crops
    similarity = flat[:anchors] @ flat.t()
    image = torch.arange(len(flat), device=flat.device) // crops
    is_self = torch.eye(anchors, len(flat), dtype=torch.bool, device=flat.device)
    is_sibling = (image[:anchors, None] == image) & ~is_self
    is_other = image[:anchors, None] != image
    nearest = similarity.masked_fill(is_self, -torch.inf).argmax(1)
    sibling = similarity[is_sibling].mean()
    other = similarity[is_other]
    return EmbeddingHealth(
        retrieval=(image[nearest] == image[:anchors]).float().mean(),
        sibling_cosine=sibling,
        other_cosine=other.mean(),
        alignment=2 - 2 * sibling,
        # Of vectors of length 1, the squared distance is 2 - 2 * cosine.
        uniformity=(4 * other - 4).exp().mean().log(),
        embedding_deviation=deviation(flat),
        embedding_rank=effective_rank(flat),
    )


def deviation(embeddings: Tensor) -> Tensor:
    """Returns the mean standard deviation of a channel times sqrt(channels), float [].

    It is 0 if all embeddings are equal, and 1 if they point in all directions alike (Chen and He,
    CVPR 2021, section 4.1).

    Args:
      embeddings: float [rows, channels], L2-normalized.
    """
    return embeddings.std(0, correction=0).mean() * embeddings.shape[1] ** 0.5


def measure(embeddings: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Returns the health of embeddings and the effective rank of features, by name.

    Args:
      embeddings: see `embedding_health`.
      features: [rows, channels], of the encoder.
    """
    health = embedding_health(embeddings)._asdict()
    return {**health, "feature_rank": effective_rank(features.float())}


def chance_retrieval(images: int, crops: int) -> float:
    """Returns the retrieval of random embeddings."""
    return (crops - 1) / (images * crops - 1)


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """Returns RankMe, the exponential of the entropy of singular values (arXiv 2210.02885).

    With singular values s and p = s / sum(s), the result is exp(-sum(p * log(p))), between 1 and
    the smaller side of the matrix (Garrido et al., ICML 2023, equation 1). It is that of the
    first 512 rows. Computed on the CPU, in float64.

    Args:
      features: float [rows, channels], one row or more.

    Returns:
      float32 [], on the CPU; 0 if all features are 0, nan if one is not finite.
    """
    rows = features[:_RANK_ROWS].cpu().double()
    if not rows.isfinite().all():
        return torch.tensor(torch.nan)
    # The eigenvalues of the smaller Gram matrix cost a tenth of a singular value decomposition.
    gram = rows @ rows.t() if rows.shape[0] < rows.shape[1] else rows.t() @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum()
    return torch.where(values.sum() > 0, entropy.exp(), 0.0).float()
