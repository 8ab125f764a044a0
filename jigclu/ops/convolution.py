"""Convolution of small maps as one matrix product."""

import torch
from torch import Tensor
from torch.nn import functional


def output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Returns the rows or columns of the map that a convolution maps a size to."""
    return (size + 2 * padding - kernel) // stride + 1


def convolve_by_product(images: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolves as `torch.nn.functional.conv2d` does, up to rounding, by one matrix product.

    It copies each window, and leaves out the parts of the kernel that only meet padding.

    Args:
      images: [batch, channels, rows, columns].
      weight: [new channels, channels, kernel, kernel].
      stride: pixels between windows.
      padding: pixels of zeros on each side.

    Returns:
      [batch, new channels, new rows, new columns], with channels last in memory.
    """
    kernel = weight.shape[-1]
    vertical = _taps(images.shape[2], kernel, stride, padding)
    horizontal = _taps(images.shape[3], kernel, stride, padding)
    rows, columns = (output_size(size, kernel, stride, padding) for size in images.shape[2:])
    padded = functional.pad(images, (padding,) * 4).movedim(1, -1)
    windows = [
        padded[:, top : top + stride * rows : stride, left : left + stride * columns : stride]
        for top in vertical
        for left in horizontal
    ]
    used = weight[:, :, vertical.start : vertical.stop, horizontal.start : horizontal.stop]
    product = functional.linear(torch.cat(windows, -1), used.permute(0, 2, 3, 1).flatten(1))
    return product.movedim(-1, 1)


def _taps(size: int, kernel: int, stride: int, padding: int) -> range:
    """Returns the rows or columns of a kernel that meet the image in any window."""
    last = stride * (output_size(size, kernel, stride, padding) - 1)  # start of the last window
    # A tap t meets pixels t - padding, t - padding + stride, ..., t - padding + last.
    return range(max(0, padding - last), min(kernel, size + padding))
