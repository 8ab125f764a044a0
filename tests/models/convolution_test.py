"""Which convolutions of which maps are computed as matrix products."""

from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.models import convolution
from jigclu.models.convolution import Convolution, use_products
from jigclu.models.encoder import create_encoder


class ConvolutionTest(parameterized.TestCase):
    def count(self, network: nn.Module, images: torch.Tensor) -> int:
        """Returns how many convolutions of a forward pass are matrix products."""
        product = convolution.convolve_by_product
        with mock.patch.object(convolution, "convolve_by_product", side_effect=product) as counted:
            network(images)
        return counted.call_count

    def test_only_small_maps_in_training(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False))
        use_products(network)
        self.assertEqual(self.count(network, torch.randn(2, 3, 8, 8)), 1)
        self.assertEqual(self.count(network, torch.randn(2, 3, 8, 9)), 0)
        network.eval()
        self.assertEqual(self.count(network, torch.randn(2, 3, 8, 8)), 0)

    def test_only_on_cpus(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False, device="meta"))
        use_products(network)
        self.assertEqual(self.count(network, torch.randn(2, 3, 4, 4, device="meta")), 0)

    @parameterized.parameters(
        (nn.Conv2d(4, 4, 3, groups=4, bias=False),),
        (nn.Conv2d(4, 4, 3, dilation=2, bias=False),),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),),
        (nn.Conv2d(4, 4, (1, 3), bias=False),),
        (nn.Conv2d(4, 4, 3, padding="same", bias=False),),
        (nn.Conv2d(4, 4, 3),),
        (nn.Conv1d(4, 4, 3, bias=False),),
    )
    def test_others_stay(self, module: nn.Module) -> None:
        use_products(module)
        self.assertNotIsInstance(module, Convolution)

    def test_encoder_equals_that_of_torch(self) -> None:
        torch.manual_seed(0)
        encoder = create_encoder("resnet18", False)
        images = torch.randn(4, 3, 64, 64)
        self.assertEqual(encoder(images).shape, (4, 512, 2, 2))
        # The last two stages, which have maps of 4x4 and of 2x2: five convolutions each.
        self.assertEqual(self.count(encoder, images), 10)
        results = []
        for small in (convolution._SMALL, 0):
            with mock.patch.object(convolution, "_SMALL", small):
                loss = encoder(images).square().mean()
            results.append((loss, *torch.autograd.grad(loss, list(encoder.parameters()))))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
