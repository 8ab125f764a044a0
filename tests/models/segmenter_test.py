"""Heads of segmentation: what they train, and in which mode."""

import torch
from absl.testing import absltest
from torch import nn
from torchvision.models.segmentation.fcn import FCNHead

from jigclu.models.segmenter import Segmenter
from tests.samples import small_encoder


class SegmenterTest(absltest.TestCase):
    def test_linear_head_trains_only_itself(self) -> None:
        network = Segmenter(small_encoder(), "linear", 5)
        trained = [name for name, value in network.named_parameters() if value.requires_grad]
        self.assertEqual(trained, ["head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"])
        for mode in (True, False):
            network.train(mode)
            self.assertEqual(network.head[0].training, mode)
            self.assertFalse(any(module.training for module in network.encoder.modules()))

    def test_fcn_head_trains_everything(self) -> None:
        network = Segmenter(small_encoder(), "fcn", 5)
        self.assertTrue(all(value.requires_grad for value in network.parameters()))
        for mode in (False, True):
            network.train(mode)
            self.assertTrue(all(module.training == mode for module in network.modules()))

    def test_fcn_head_equals_torchvisions_in_eval_mode(self) -> None:
        network = Segmenter(small_encoder(), "fcn", 5).eval()
        theirs = FCNHead(512, 5).eval()
        convolution, norm, _, _, classifier = theirs
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean, norm.running_var = torch.randn(128), torch.rand(128) + 0.5
        network.head[0].load_state_dict(convolution.state_dict())
        network.head[1].load_state_dict(norm.state_dict(), strict=False)
        network.head[3].load_state_dict(classifier.state_dict())
        images = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(network(images), theirs(network.encoder(images)))


if __name__ == "__main__":
    absltest.main()
