"""Small tensors to the device of a step, so that nothing waits for them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copies a tensor to a device; the host goes on at once.

    A copy to a GPU that begins elsewhere than in page-locked memory would wait for all that
    is queued there.
    """
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Returns float32 [channels, 1, 1] on a device, filled there: nothing is copied."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
