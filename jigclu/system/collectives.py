"""Communication between ranks; other modules do not call torch.distributed themselves.

Without a process group every function behaves as for a single rank, so callers need no
second code path.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jigclu.system.to_device import to_device

try:
    from torch.distributed._functional_collectives import all_gather_single_autograd as _all_gather
except ImportError:  # Its name in older versions, for which newer ones warn.
    from torch.distributed._functional_collectives import all_gather_tensor_autograd as _all_gather

_Value = TypeVar("_Value")


def rank() -> int:
    """Returns the rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Returns the number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def broadcast(value: _Value) -> _Value:
    """Returns the value of rank 0, any object that pickles, on every rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def gather_objects(value: _Value) -> list[_Value]:
    """Returns the values of all ranks, objects that pickle, in rank order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Waits until every rank has called it."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, without gradient."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Returns the mean of a tensor over all ranks, without gradient."""
    total = sum_over_ranks(values)
    return total if world_size() == 1 else total / world_size()


class AnyRank:
    """Exchanges a flag of every rank after every step, without making the step wait for it.

    On a GPU, a call returns the result of the call before, which its step has finished by then
    or soon will, while the next step is already queued.
    """

    def __init__(self, device: torch.device) -> None:
        """Exchanges flags on the device of the steps."""
        self._device = device
        self._previous: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, flag: bool) -> bool:
        """Returns whether any rank passed True, the same on every rank."""
        if world_size() == 1:
            return flag
        total = sum_over_ranks(torch.full((), float(flag), device=self._device))
        if self._device.type != "cuda":
            return total.item() > 0
        previous = self._previous
        # The copy is in page-locked memory, because it does not block.
        copy = total.to("cpu", non_blocking=True)
        self._previous = copy, torch.cuda.current_stream(self._device).record_event()
        if previous is None:
            return False
        result, arrival = previous
        arrival.synchronize()
        return result.item() > 0


def gather(values: Tensor, dim: int) -> Tensor:
    """Concatenates the ranks' tensors, which have one shape, along a dimension in rank order."""
    if world_size() == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values)
    return torch.cat(gathered, dim)


def gather_with_gradient(values: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along dimension 0, in rank order, with gradient.

    The gradient of the result is summed over ranks and scattered back (a reduce-scatter), so
    that every rank's values receive the gradients of all ranks' losses.

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
    """Sends every patch to the rank whose montages show it, in one all-to-all of bytes.

    Rank r holds the images [r * batch, (r + 1) * batch) and the slots
    [r * batch * grid**2, (r + 1) * batch * grid**2) of the global batch. Every rank knows the
    permutation, so no indices are exchanged.

    Args:
      patches: uint8 [batch, grid**2, channels, size, size], from this rank's images.
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
    # Sent ordered by destination rank and, within a rank, by its slots.
    sent = flat[to_device(local[source == own], flat.device)]
    received = torch.empty_like(flat)
    dist.all_to_all_single(
        received,
        sent,
        output_split_sizes=(source[own].bincount(minlength=ranks)).tolist(),
        input_split_sizes=(source == own).sum(1).tolist(),
    )
    # Received ordered by source rank and, within a rank, by our slots: undo that sort.
    arrival = source[own].argsort(stable=True)
    return received[to_device(arrival.argsort(), received.device)]
