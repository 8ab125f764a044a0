"""Batch normalization over the images of all ranks (SyncBN), as a function.

`torch.nn.SyncBatchNorm` rejects CPU tensors in a process group and cannot be compiled with
fullgraph=True; this implementation has neither limit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jigclu.system import collectives


def batch_norm(
    images: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalizes with the statistics of the global batch; leaves its arguments unchanged.

    Args:
      images: [batch, channels, ...], such as maps or vectors, the share of this rank.
      weight: float32 [channels].
      bias: float32 [channels].
      running_mean: float32 [channels].
      running_var: float32 [channels].
      momentum: share of the new statistics in the running ones (published 0.1).
      epsilon: added to the variance (published 1e-5).

    Returns:
      The normalized images, in their dtype and memory format, and the new running mean and
      running variance (unbiased).
    """
    if collectives.world_size() == 1:
        mean, var = running_mean.clone(), running_var.clone()
        images = functional.batch_norm(images, mean, var, weight, bias, True, momentum, epsilon)
        return images, mean, var
    count = images.numel() // images.shape[1] * collectives.world_size()
    mean, var = _global_statistics(images.float())
    scale = weight * (var + epsilon).rsqrt()
    shift = bias - mean * scale
    scale, shift = (value.view(-1, *[1] * (images.ndim - 2)) for value in (scale, shift))
    normalized = images.float() * scale + shift
    with torch.no_grad():
        new_mean = torch.lerp(running_mean, mean, momentum)
        new_var = torch.lerp(running_var, var * (count / (count - 1)), momentum)
    return normalized.to(images.dtype), new_mean, new_var


def _global_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Merges the ranks' means and variances, which is more accurate than summing squares."""
    var, mean = torch.var_mean(images, (0, *range(2, images.ndim)), correction=0)
    gathered = collectives.gather_with_gradient(torch.stack([mean, var])[None])
    means, variances = gathered[:, 0], gathered[:, 1]
    global_mean = means.mean(0)
    return global_mean, variances.mean(0) + (means - global_mean).square().mean(0)


class BatchNorm(nn.Module):
    """`batch_norm` as a module with parameters and running statistics.

    It serves as norm_layer of torchvision's models. In eval mode it normalizes with the
    running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @classmethod
    def adopt(cls, norm: nn.BatchNorm2d) -> "BatchNorm":
        """Returns a module with the settings and tensors of torch's."""
        assert norm.momentum is not None
        assert norm.running_mean is not None and norm.running_var is not None
        own = cls(norm.num_features, norm.momentum, norm.eps)
        own.weight, own.bias = norm.weight, norm.bias
        own.running_mean, own.running_var = norm.running_mean, norm.running_var
        return own

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes [batch, channels, ...]; updates running statistics in training."""
        statistics = (self.running_mean, self.running_var)
        if not self.training:
            return functional.batch_norm(
                images, *statistics, self.weight, self.bias, False, 0.0, self.epsilon
            )
        images, mean, var = batch_norm(
            images, self.weight, self.bias, *statistics, self.momentum, self.epsilon
        )
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return images


class BatchNormAct(BatchNorm):
    """Batch normalization followed by an activation, with the names of timm's BatchNormAct2d."""

    act: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Normalizes and activates [batch, channels, height, width]; see `BatchNorm`."""
        return self.act(super().forward(images))
