"""The two losses of jigsaw clustering (paper section 3.2)."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Rows of the matrix [anchors, patches] of cosines that exist at once: its memory grows with
# the patches, not with their square. The published batch, 1,024 patches, is below it.
ANCHORS_AT_ONCE = 2048


def embeddings_by_image(embeddings: Tensor, permutation: Tensor, grid: int) -> Tensor:
    """Brings the vectors of the slots of the global batch back to their images.

    Args:
      embeddings: [batch * grid**2, channels], one a slot of the global batch.
      permutation: int64 [batch * grid**2]: slot s shows patch permutation[s].
      grid: patches a side.

    Returns:
      [batch, grid**2, channels]: one a patch of an image.
    """
    slot_of = torch.empty_like(permutation)
    slot_of[permutation] = torch.arange(len(permutation), device=permutation.device)
    return embeddings[slot_of.view(grid**2, -1).t()]


def clustering_loss(
    embeddings: Tensor, first: int, count: int, temperature: float, base_temperature: float
) -> Tensor:
    """Pulls the patches of an image together and away from all others (paper equation 2).

    For an anchor patch: minus the mean over its siblings of the log-softmax,
    over all other patches of the batch, of cosine / temperature; the mean over
    anchors, times temperature / base_temperature as in the published code.
    Positives are the other patches of a row, so no [patches, patches] mask exists; of
    the cosines, no more than ANCHORS_AT_ONCE rows do, which are made anew for the gradient.

    Args:
      embeddings: [batch, patches, channels], L2-normalized, of the global batch.
      first: the first image whose patches are anchors here.
      count: images whose patches are anchors here.
      temperature: > 0 (published 0.3).
      base_temperature: > 0 (published 0.07).

    Returns:
      float [], the mean over count * patches anchors.
    """
    anchors = embeddings[first : first + count]
    patches = embeddings.shape[1]
    flat = anchors.flatten(0, 1)
    own = first * patches + torch.arange(len(flat), device=flat.device)
    to_others = _log_sum_of_others(flat, own, embeddings.flatten(0, 1), temperature)
    similarity = anchors @ anchors.transpose(1, 2) / temperature
    to_siblings = similarity.sum(2) - similarity.diagonal(dim1=1, dim2=2)
    log_likelihood = to_siblings.flatten() / (patches - 1) - to_others
    return -temperature / base_temperature * log_likelihood.mean()


def _log_sum_of_others(anchors: Tensor, own: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """Returns [anchors]: the log of the sum of exp(cosine / temperature) to all other patches.

    Args:
      anchors: [anchors, channels].
      own: int64 [anchors]: the patch that an anchor is, which it is not compared with.
      patches: [patches, channels], all of the batch.
      temperature: > 0.
    """

    def of_rows(rows: Tensor, own: Tensor, patches: Tensor) -> Tensor:
        logits = rows @ patches.t() / temperature
        return logits.scatter(1, own[:, None], -torch.inf).logsumexp(1)

    if len(anchors) <= ANCHORS_AT_ONCE:
        return of_rows(anchors, own, patches)
    pieces = zip(anchors.split(ANCHORS_AT_ONCE), own.split(ANCHORS_AT_ONCE), strict=True)
    return torch.cat(
        [
            checkpoint(of_rows, *piece, patches, use_reentrant=False, preserve_rng_state=False)
            for piece in pieces
        ]
    )


def location_loss(logits: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Scores where in its image each slot's patch lay (paper equation 3).

    Args:
      logits: [slots, grid**2].
      patch: int64 [slots], `jigsaw.patch_locations`.

    Returns:
      The cross-entropy [] in nats, and the accuracy [] in [0, 1].
    """
    accuracy = (logits.argmax(1) == patch).float().mean()
    return functional.cross_entropy(logits, patch), accuracy
