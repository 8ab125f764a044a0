"""Color jitter, grayscale, blur and flip of a batch of patches on its device.

Drawing and applying are separate: `draw_augmentation` turns (seed, step) into a few tensors
with one row per patch of the global batch, and the augmentation applies them without branching
on data, so it compiles once. The published recipe (Chen et al., CVPR 2021, section 4) is jitter
(0.4, 0.4, 0.4, 0.1) with probability 0.8, grayscale 0.2, blur 0.5 and flip 0.5. Each
operation equals torchvision's on float images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


Draws = tuple[Tensor, ...]


class Augmentation(Protocol):
    """A random augmentation: numbers are drawn first, and a pure function of crops uses them.

    A new one is a frozen dataclass of its settings, which a gin file imports and binds;
    docs/augmentation.md has an example.
    """

    @property
    def mean(self) -> Sequence[float]:
        """Subtracted from RGB in [0, 1]; pictures undo it."""

    @property
    def std(self) -> Sequence[float]:
        """Divides RGB in [0, 1] after that; pictures undo it."""

    def draw(self, generator: torch.Generator, count: int) -> Draws:
        """Draws random numbers, the same on every rank.

        Args:
          generator: of the step, on the CPU; all random numbers must come from it.
          count: crops of the global batch.

        Returns:
          Tensors on the CPU, each with one row per crop.
        """

    def __call__(self, crops: Tensor, draws: Draws) -> Tensor:
        """Augments and normalizes crops, as a function of its arguments only.

        It is compiled with the forward pass: no branches on data, nothing that waits for the
        device.

        Args:
          crops: uint8 [rows, 3, height, width], on the device.
          draws: rows of `draw` for these crops, on the device.

        Returns:
          float32 [rows, 3, height, width], normalized.
        """


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


@dataclass(frozen=True, kw_only=True)
class ColorAugmentation:
    """Flip, color jitter, grayscale, blur, and the normalization after them.

    Brightness, contrast and saturation factors are drawn from U(max(0, 1 - value), 1 + value),
    the hue shift from U(-hue, hue) in turns of the color circle, and the sigma of the blur from
    U(blur_sigma_min, blur_sigma_max) in pixels of a patch.

    Attributes:
      brightness: largest relative change of the brightness.
      contrast: largest relative change of the contrast.
      saturation: largest relative change of the saturation.
      hue: largest shift of the hue, in turns of the color circle.
      jitter_probability: of changing brightness, contrast, saturation and hue.
      grayscale_probability: of removing the colors.
      blur_probability: of a Gaussian blur.
      blur_sigma_min: least sigma of the blur, in pixels of a patch.
      blur_sigma_max: greatest sigma of the blur, in pixels of a patch.
      flip_probability: of mirroring left and right.
      mean: of RGB in [0, 1], which normalizes the result.
      std: of RGB in [0, 1], which normalizes the result.
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

    def draw(self, generator: torch.Generator, count: int) -> AugmentationParameters:
        """Draws the augmentation of every crop; each has its own order of operations."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        spread = torch.tensor([self.brightness, self.contrast, self.saturation])
        low, high = (1 - spread).clamp_min(0), 1 + spread
        scales = low + (high - low) * uniform(count, 3)
        shifts = self.hue * (2 * uniform(count, 1) - 1)
        jittered = uniform(count, 1) < self.jitter_probability
        widths = self.blur_sigma_max - self.blur_sigma_min
        sigma = self.blur_sigma_min + widths * uniform(count)
        return AugmentationParameters(
            factors=torch.where(jittered, torch.cat([scales, shifts], 1), torch.tensor(_IDENTITY)),
            order=uniform(count, 4).argsort(1),
            grayscale=uniform(count) < self.grayscale_probability,
            sigma=torch.where(uniform(count) < self.blur_probability, sigma, 0.0),
            flip=uniform(count) < self.flip_probability,
        )

    def __call__(self, crops: Tensor, draws: Draws) -> Tensor:
        """Augments and normalizes crops; see `Augmentation`.

        The flip commutes with the rest and comes first, while a pixel is one byte.
        """
        parameters = AugmentationParameters(*draws)
        flipped = torch.where(_per_patch(parameters.flip), crops.flip(-1), crops)
        images = _jitter(flipped.float() / 255, parameters.factors, parameters.order)
        images = torch.where(_per_patch(parameters.grayscale), _gray(images), images)
        images = _blur(images, parameters.sigma, self.blur_sigma_max)
        mean, std = (per_channel(values, images.device) for values in (self.mean, self.std))
        return (images - mean) / std


def draw_augmentation(augmentation: Augmentation, seed: int, step: int, count: int) -> Draws:
    """Draws the augmentation of every crop of the global batch.

    The draws depend only on (seed, step), so they are the same on every rank; `select_rows`
    picks the rows of one rank.

    Args:
      augmentation: that draws.
      seed: of the run.
      step: the step, from 0.
      count: crops in the global batch.
    """
    return augmentation.draw(seeds.augmentation(seed, step), count)


def select_rows(draws: Draws, rows: Tensor, device: torch.device | str) -> Draws:
    """Copies the given rows, int64 [selected] on the CPU, to a device."""
    return tuple(to_device(values[rows], device) for values in draws)


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
    # PIL's kernel is not cut off at a fixed radius; 3 sigma contain 99.7% of a Gaussian.
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
