"""Asynchronous host-to-device copies of small tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Copies a tensor to a device without blocking the host.

    The copy to a GPU starts from page-locked memory; from other memory it would wait for all
    work queued on the GPU.
    """
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Returns float32 [channels, 1, 1], filled on the device, so that nothing is copied to it."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
