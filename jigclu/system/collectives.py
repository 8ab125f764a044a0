"""What ranks exchange: patches once as bytes, embeddings and statistics with gradient.

Without a process group every function is the identity of one rank, so callers
need no second path.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jigclu.system.to_device import to_device

try:
    from torch.distributed._functional_collectives import all_gather_single_autograd as _all_gather
except ImportError:  # The name in older versions; newer ones warn at it.
    from torch.distributed._functional_collectives import all_gather_tensor_autograd as _all_gather

_Value = TypeVar("_Value")


def rank() -> int:
    """Returns the number of this process among all, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns how many processes take part, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: _Value) -> _Value:
    """Returns the value of rank 0, a plain object, on every rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Returns the sum of a tensor of one shape over all ranks, without gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Returns the mean of a tensor of one shape over all ranks, without gradient."""
    total = sum_over_ranks(values)
    return total if world_size() == 1 else total / world_size()


def gather(values: Tensor, dim: int) -> Tensor:
    """Concatenates a tensor of one shape on all ranks along a dimension, in the order of ranks."""
    if world_size() == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.cat(gathered, dim)


def gather_with_gradient(values: Tensor) -> Tensor:
    """Concatenates a tensor of all ranks along dimension 0, in the order of ranks.

    The gradient of the result is summed over ranks and scattered back (a
    reduce-scatter), so what every rank computes from all values counts.

    Args:
      values: [count, ...], of one shape on all ranks.

    Returns:
      [world_size * count, ...].
    """
    if world_size() == 1:
        return values
    group = dist.group.WORLD
    assert group is not None
    gathered: Tensor = _all_gather(values.contiguous(), 0, group)
    return gathered


def exchange_patches(patches: Tensor, permutation: Tensor) -> Tensor:
    """Brings every patch to the rank whose montages show it: one all-to-all of bytes.

    Rank r holds the images [r * batch, (r + 1) * batch) and the slots
    [r * batch * grid**2, (r + 1) * batch * grid**2) of the global batch. The
    permutation is known everywhere, so ranks need not say what they send.

    Args:
      patches: uint8 [batch, grid**2, channels, size, size], of this rank's images.
      permutation: int64 [world_size * batch * grid**2] on the CPU, `jigsaw.global_permutation`.

    Returns:
      uint8 [batch * grid**2, channels, size, size]: the patch of each of this rank's slots.
    """
    batch, pieces = patches.shape[:2]
    ranks, own = world_size(), rank()
    slots = permutation.view(ranks, batch * pieces)
    patch, image = slots // (ranks * batch), slots % (ranks * batch)
    source, local = image // batch, (image % batch) * pieces + patch
    flat = patches.flatten(0, 1)
    if ranks == 1:
        return flat[to_device(local[0], flat.device)]
    # Sent in the order of destinations and, within one, of its slots.
    sent = flat[to_device(local[source == own], flat.device)]
    received = torch.empty_like(flat)
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=(source[own].bincount(minlength=ranks)).tolist(),
        input_split_sizes=(source == own).sum(1).tolist(),
    )
    # Received in the order of sources and, within one, of our slots: undo that sort.
    arrival = source[own].argsort(stable=True)
    return received[to_device(arrival.argsort(), received.device)]
