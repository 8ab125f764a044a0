"""Convolution layers that CPUs train quickly on small maps."""

from torch import Tensor, nn

from jigclu.ops.convolution import convolve_by_product, output_size

# Pixels of a new map; a limit of 6x6 was slower: docs/performance.md.
_SMALL = 4 * 4


class Convolution(nn.Conv2d):
    """torch's convolution; training on a CPU, a matrix product where the new map is small.

    oneDNN takes about as long for 512 channels on a map of 2x2 as on one of 4x4.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Maps [batch, channels, rows, columns] to [batch, new channels, new rows, new columns]."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        assert isinstance(padding, int)
        rows, columns = (output_size(size, kernel, stride, padding) for size in images.shape[2:])
        if self.training and images.device.type == "cpu" and rows * columns <= _SMALL:
            return convolve_by_product(images, self.weight, stride, padding)
        return super().forward(images)


def use_products(network: nn.Module) -> None:
    """Turns the plain convolutions of a network into `Convolution`s, in place."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Convolution


def _is_plain(module: nn.Conv2d) -> bool:
    """Returns whether a convolution is one that `convolve_by_product` computes."""
    square = all(len(set(pair)) == 1 for pair in (module.kernel_size, module.stride))
    zeros = module.padding_mode == "zeros" and len(set(module.padding)) == 1
    dense = module.groups == 1 and module.dilation == (1, 1)
    return square and zeros and dense and module.bias is None
