"""The two losses of jigsaw clustering (paper section 3.2)."""

import torch
from torch import Tensor
from torch.nn import functional


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
    Positives are the other patches of a row, so no [patches, patches] mask exists.

    Args:
      embeddings: [batch, patches, channels], L2-normalised, of the global batch.
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
    logits = flat @ embeddings.flatten(0, 1).t() / temperature
    own = first * patches + torch.arange(len(flat), device=flat.device)
    others = logits.scatter(1, own[:, None], -torch.inf)
    similarity = anchors @ anchors.transpose(1, 2) / temperature
    to_siblings = similarity.sum(2) - similarity.diagonal(dim1=1, dim2=2)
    log_likelihood = to_siblings.flatten() / (patches - 1) - others.logsumexp(1)
    return -temperature / base_temperature * log_likelihood.mean()


def location_loss(logits: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Scores where in its image each slot's patch lay (paper equation 3).

    Args:
      logits: [slots, grid**2].
      patch: int64 [slots], `jigsaw.patch_of`.

    Returns:
      The cross-entropy [] in nats, and the accuracy [] in [0, 1].
    """
    accuracy = (logits.argmax(1) == patch).float().mean()
    return functional.cross_entropy(logits, patch), accuracy
