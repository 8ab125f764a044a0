"""The two losses of jigsaw clustering (Chen et al., CVPR 2021, section 3.2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Anchor rows of the similarity matrix computed at a time; keeps memory linear in the number of
# patches. The published batch of 1,024 patches is computed at once.
ANCHORS_AT_ONCE = 2048


def embeddings_by_image(embeddings: Tensor, permutation: Tensor, grid: int) -> Tensor:
    """Reorders embeddings from the slots of montages back to the patches of images.

    Args:
      embeddings: [batch * grid**2, ...], in slot order of the global batch.
      permutation: int64 [batch * grid**2]: slot s shows patch permutation[s].
      grid: patches per side.

    Returns:
      [batch, grid**2, ...], in patch order within each image.
    """
    slot_of = torch.empty_like(permutation)
    slot_of[permutation] = torch.arange(len(permutation), device=permutation.device)
    return embeddings[slot_of.view(grid**2, -1).t()]


def clustering_loss(
    embeddings: Tensor,
    first: int,
    count: int,
    temperature: float,
    base_temperature: float,
    queue_sums: Tensor | None = None,
) -> Tensor:
    """Computes the supervised contrastive loss with images as classes (equation 2).

    The loss of an anchor patch is minus the mean, over the other patches of its image, of
    log-softmax(cosine / temperature) over all other patches of the batch. The result is the
    mean over anchors times temperature / base_temperature, a factor of the published code.

    Positives are the other patches of the same row, so no [patches, patches] mask is needed. At
    most ANCHORS_AT_ONCE rows of cosines are held at a time and are recomputed for the gradient.

    Args:
      embeddings: [batch, patches, channels], L2-normalized, of the global batch.
      first: first image whose patches are anchors on this rank.
      count: number of images whose patches are anchors on this rank.
      temperature: > 0 (published 0.3).
      base_temperature: > 0 (published 0.07).
      queue_sums: [batch, patches], `log_sum_of_queue` of all embeddings, whose queue has further
        negatives; None for none, as published.

    Returns:
      float [], the mean over count * patches anchors, in nats before the factor.
    """
    anchors = embeddings[first : first + count]
    patches = embeddings.shape[1]
    flat = anchors.flatten(0, 1)
    own = first * patches + torch.arange(len(flat), device=flat.device)
    to_others = _log_sum_of_others(flat, own, embeddings.flatten(0, 1), temperature)
    if queue_sums is not None:
        to_others = torch.logaddexp(to_others, queue_sums[first : first + count].flatten())
    similarity = anchors @ anchors.transpose(1, 2) / temperature
    to_siblings = similarity.sum(2) - similarity.diagonal(dim1=1, dim2=2)
    log_likelihood = to_siblings.flatten() / (patches - 1) - to_others
    return -temperature / base_temperature * log_likelihood.mean()


def least_clustering_loss(
    images: int, patches: int, temperature: float, base_temperature: float
) -> float:
    """Returns the least value of `clustering_loss`.

    The patches of an image then have one embedding, and the embeddings of images are the corners
    of a regular simplex, with cosines of -1 / (images - 1) (Graf et al., ICML 2021, theorem 2).
    Embeddings with fewer than images - 1 channels do not reach it.

    Args:
      images: of the global batch, two or more.
      patches: of each image.
      temperature: see `clustering_loss`.
      base_temperature: likewise.
    """
    others = (images - 1) * patches
    distance = (1 + 1 / (images - 1)) / temperature
    total = math.log(patches - 1 + others * math.exp(-distance))
    return temperature / base_temperature * total


def _log_sum_of_others(anchors: Tensor, own: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """Sums exp(cosine / temperature) over all patches but the anchor itself; returns the log.

    Args:
      anchors: [anchors, channels].
      own: int64 [anchors], the index of each anchor among the patches.
      patches: [patches, channels], of the global batch.
      temperature: > 0.

    Returns:
      [anchors].
    """

    def log_sums(rows: Tensor, own: Tensor, patches: Tensor) -> Tensor:
        logits = rows @ patches.t() / temperature
        return logits.scatter(1, own[:, None], -torch.inf).logsumexp(1)

    return _in_pieces(log_sums, (anchors, own), patches)


def log_sum_of_queue(embeddings: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Sums exp(cosine / temperature) over the entries of a queue; returns the log.

    Args:
      embeddings: [anchors, channels], L2-normalized.
      queue: [queue_size, channels], likewise. Zeros are empty entries, which do not count.
      temperature: > 0.

    Returns:
      [anchors]; the most negative number of the dtype if all entries are empty.
    """

    def log_sums(rows: Tensor, queue: Tensor) -> Tensor:
        logits = rows @ queue.t() / temperature
        # A finite number: from -inf, the gradient of an empty queue would pass through nan.
        return logits.masked_fill(~queue.any(1), torch.finfo(logits.dtype).min).logsumexp(1)

    return _in_pieces(log_sums, (embeddings,), queue)


def _in_pieces(
    log_sums: Callable[..., Tensor], anchors: tuple[Tensor, ...], others: Tensor
) -> Tensor:
    """Returns log_sums(*anchors, others), for at most ANCHORS_AT_ONCE rows of anchors at a time."""
    if len(anchors[0]) <= ANCHORS_AT_ONCE:
        return log_sums(*anchors, others)
    pieces = zip(*(values.split(ANCHORS_AT_ONCE) for values in anchors), strict=True)
    return torch.cat(
        [
            checkpoint(log_sums, *piece, others, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    )


def location_loss(logits: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
    """Scores the predicted location of each slot's patch within its image (equation 3).

    Args:
      logits: [slots, grid**2].
      locations: int64 [slots], of `jigsaw.patch_locations`.

    Returns:
      The mean cross-entropy [] in nats and the accuracy [] in [0, 1].
    """
    accuracy = (logits.argmax(1) == locations).float().mean()
    return functional.cross_entropy(logits, locations), accuracy
