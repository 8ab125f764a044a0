"""Color jitter, grayscale, blur and flip of a batch of patches on its device.

Drawing and applying are separate: `draw_augmentation` turns (seed, step) into a few tensors
with one row per patch of the global batch, and `augment` applies them without branching on
data, so it compiles once. The published recipe (Chen et al., CVPR 2021, section 4) is jitter
(0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.2, blur 0.5 and flip 0.5. Each
operation equals torchvision's on float images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jigclu.ops.normalize import check_normalization
from jigclu.system import seeds
from jigclu.system.errors import check
from jigclu.system.to_device import per_channel, to_device

# The four color operations, as columns of `factors` and entries of `order`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_IDENTITY = (1.0, 1.0, 1.0, 0.0)
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as in torchvision.
# Gives exactly the kernel [0, ..., 0, 1, 0, ..., 0] in float32; sigma 0 would divide by zero.
_SHARP_SIGMA = 1e-3


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """The distributions of the random augmentation, and the normalization after it.

    Brightness, contrast and saturation factors are drawn from U(max(0, 1 - value), 1 + value),
    the hue shift from U(-hue, hue) in turns of the color circle, and the sigma of the blur from
    U(blur_sigma_min, blur_sigma_max) in pixels of a patch. Mean and std are of RGB in [0, 1].
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_probability: float
    grayscale_probability: float
    blur_probability: float
    blur_sigma_min: float
    blur_sigma_max: float
    flip_probability: float
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            check(0 <= value < math.inf, name, value, f"0 or more; factors span 1 ± {name}")
        check(0 <= self.hue <= 0.5, "hue", self.hue, "in [0, 0.5] turns of the color circle")
        for name in ("jitter", "grayscale", "blur", "flip"):
            probability = getattr(self, f"{name}_probability")
            check(0 <= probability <= 1, f"{name}_probability", probability, "in [0, 1]")
        low, high = self.blur_sigma_min, self.blur_sigma_max
        check(0 < low < math.inf, "blur_sigma_min", low, "above 0, in pixels")
        check(low <= high < math.inf, "blur_sigma_max", high, f"at least blur_sigma_min = {low}")
        check_normalization(self.mean, self.std)


class AugmentationParameters(NamedTuple):
    """Draws of the augmentation, one row per patch.

    factors: float32 [count, 4]: brightness, contrast, saturation, hue; 1, 1, 1, 0 for no jitter.
    order: int64 [count, 4]: the four operations in the order in which they are applied.
    grayscale: bool [count].
    sigma: float32 [count], pixels; 0 for no blur.
    flip: bool [count].
    """

    factors: Tensor
    order: Tensor
    grayscale: Tensor
    sigma: Tensor
    flip: Tensor


def draw_augmentation(
    settings: AugmentationSettings, seed: int, step: int, count: int
) -> AugmentationParameters:
    """Draws the augmentation of every patch of the global batch.

    The draws depend only on (seed, step), so they are the same on every rank; `select_rows`
    picks the rows of one rank.

    Args:
      settings: distributions to draw from.
      seed: of the run.
      step: the step, from 0.
      count: patches in the global batch.

    Returns:
      `count` rows on the CPU. Every patch has its own order of operations.
    """
    generator = seeds.augmentation(seed, step)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    spread = torch.tensor([settings.brightness, settings.contrast, settings.saturation])
    low, high = (1 - spread).clamp_min(0), 1 + spread
    scales = low + (high - low) * uniform(count, 3)
    shifts = settings.hue * (2 * uniform(count, 1) - 1)
    jittered = uniform(count, 1) < settings.jitter_probability
    widths = settings.blur_sigma_max - settings.blur_sigma_min
    sigma = settings.blur_sigma_min + widths * uniform(count)
    return AugmentationParameters(
        factors=torch.where(jittered, torch.cat([scales, shifts], 1), torch.tensor(_IDENTITY)),
        order=uniform(count, 4).argsort(1),
        grayscale=uniform(count) < settings.grayscale_probability,
        sigma=torch.where(uniform(count) < settings.blur_probability, sigma, 0.0),
        flip=uniform(count) < settings.flip_probability,
    )


def select_rows(
    parameters: AugmentationParameters, rows: Tensor, device: torch.device | str
) -> AugmentationParameters:
    """Copies the given rows, int64 [selected] on the CPU, to a device."""
    return AugmentationParameters._make(to_device(values[rows], device) for values in parameters)


def augment(
    patches: Tensor, parameters: AugmentationParameters, settings: AugmentationSettings
) -> Tensor:
    """Augments and normalizes patches: flip, color jitter, grayscale, blur, mean and std.

    The flip commutes with the rest and comes first, while a pixel is one byte.

    Args:
      patches: uint8 [count, 3, height, width].
      parameters: `count` rows on the device of the patches.
      settings: only blur_sigma_max (which sets the kernel size), mean and std are used.

    Returns:
      float32 [count, 3, height, width], normalized.
    """
    flipped = torch.where(_per_patch(parameters.flip), patches.flip(-1), patches)
    images = _jitter(flipped.float() / 255, parameters.factors, parameters.order)
    images = torch.where(_per_patch(parameters.grayscale), _gray(images), images)
    images = _blur(images, parameters.sigma, settings.blur_sigma_max)
    mean, std = (per_channel(values, images.device) for values in (settings.mean, settings.std))
    return (images - mean) / std


def _per_patch(values: Tensor) -> Tensor:
    """Reshapes [count] to broadcast over [count, channels, height, width]."""
    return values.view(-1, 1, 1, 1)


def _jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Applies the four operations, each patch in its own order.

    Brightness, contrast and saturation are cheap blends; the hue rotation is expensive. It is
    therefore computed once, between a pass that applies the blends ordered before it and a
    pass that applies those ordered after it.
    """
    hue_position = (order == HUE).int().argmax(1)
    ordered = factors.gather(1, order)
    for position in (0, 1, 2):
        factor = torch.where(position < hue_position, ordered[:, position], 1.0)
        images = _blend(images, order[:, position], factor)
    images = _rotate_hue(images, factors[:, HUE])
    for position in (1, 2, 3):
        factor = torch.where(position > hue_position, ordered[:, position], 1.0)
        images = _blend(images, order[:, position], factor)
    return images


def _blend(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Blends images with black (brightness), their mean gray (contrast) or their gray (saturation).

    Args:
      images: [count, 3, height, width] in [0, 1].
      operation: int64 [count]; HUE blends with black, for which the caller passes factor 1.
      factor: [count]; 1 keeps the image, 0 gives the other one, more than 1 overshoots.
    """
    gray = _gray(images)
    other = torch.where(
        _per_patch(operation == SATURATION),
        gray,
        gray.mean((1, 2, 3), keepdim=True) * _per_patch(operation == CONTRAST),
    )
    return torch.lerp(other, images, _per_patch(factor)).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    """Returns the luma [count, 1, height, width] of RGB images in [0, 1]."""
    red, green, blue = images.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _rotate_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotates the HSV hue of images in [0, 1] by `turns` [count], keeping value and chroma."""
    red, green, blue = images.split(1, dim=1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    rotated = sextant + 6 * _per_patch(turns)
    # A channel has the full value within one sextant of its hue and value - chroma beyond two.
    distances = [(rotated + offset).remainder(6) for offset in (5, 3, 1)]
    weights = [torch.minimum(distance, 4 - distance).clamp(0, 1) for distance in distances]
    return value - chroma * torch.cat(weights, 1)


def _blur(images: Tensor, sigma: Tensor, sigma_max: float) -> Tensor:
    """Convolves each image with its own Gaussian, reflecting at edges; sigma 0 is the identity."""
    count, channels, height, width = images.shape
    # PIL's kernel is not cut off at a fixed radius; 3 sigma contain 99.7 % of a Gaussian.
    radius = min(math.ceil(3 * sigma_max), (min(height, width) - 1) // 2)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    exponents = offsets / sigma.clamp_min(_SHARP_SIGMA)[:, None]
    kernels = torch.softmax(-0.5 * exponents**2, dim=1).repeat_interleave(channels, 0)
    groups = count * channels
    padded = functional.pad(images, [radius] * 4, mode="reflect")
    stacked = padded.reshape(1, groups, height + 2 * radius, width + 2 * radius)
    columns = functional.conv2d(stacked, kernels.view(groups, 1, -1, 1), groups=groups)
    rows = functional.conv2d(columns, kernels.view(groups, 1, 1, -1), groups=groups)
    return rows.reshape(images.shape)
