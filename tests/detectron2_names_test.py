"""Tests of jigclu.detectron2_names."""

import torch
from absl.testing import absltest, parameterized

from jigclu.detectron2_names import to_detectron2, to_torchvision
from jigclu.encoder import create_encoder, encoder_names

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _names_of_resnet50() -> list[str]:
    """Lists what detectron2 builds for R50-FPN, from its architecture."""
    convolutions = ["stem.conv1"]
    for stage, blocks in (("res2", 3), ("res3", 4), ("res4", 6), ("res5", 3)):
        for block in range(blocks):
            shortcut = ["shortcut"] if block == 0 else []
            convolutions += [f"{stage}.{block}.{c}" for c in ("conv1", "conv2", "conv3", *shortcut)]
    assert len(convolutions) == 53
    tensors = [f"{convolution}.weight" for convolution in convolutions]
    tensors += [f"{c}.norm.{statistic}" for c in convolutions for statistic in _STATISTICS]
    return [f"backbone.bottom_up.{tensor}" for tensor in tensors]


class Detectron2NamesTest(parameterized.TestCase):
    def test_resnet50_has_exactly_the_names_of_detectron2(self) -> None:
        names = [to_detectron2(name) for name in create_encoder("resnet50", False).state_dict()]
        self.assertLen(names, 53 + 53 * 4)
        self.assertCountEqual(names, _names_of_resnet50())

    @parameterized.parameters(
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"),
        ("layer3.5.conv3.weight", "res4.5.conv3.weight"),
        ("layer3.22.bn2.bias", "res4.22.conv2.norm.bias"),
    )
    def test_by_hand(self, torchvision: str, detectron2: str) -> None:
        self.assertEqual(to_detectron2(torchvision), f"backbone.bottom_up.{detectron2}")
        self.assertEqual(to_torchvision(f"backbone.bottom_up.{detectron2}"), torchvision)

    def test_there_and_back_for_every_encoder(self) -> None:
        for encoder in encoder_names():
            with torch.device("meta"):
                names = create_encoder(encoder, False).state_dict()
            for name in names:
                self.assertEqual(to_torchvision(to_detectron2(name)), name)

    @parameterized.parameters("fc.weight", "layer5.0.conv1.weight", "encoder.conv1.weight", "")
    def test_other_names_are_refused(self, name: str) -> None:
        with self.assertRaisesRegex(ValueError, "is no name of torchvision's ResNet"):
            to_detectron2(name)

    @parameterized.parameters(
        "stem.conv1.weight", "backbone.res2.0.conv1.weight", "backbone.bottom_up.res6.0.conv1.bias"
    )
    def test_other_names_of_detectron2_are_refused(self, name: str) -> None:
        with self.assertRaisesRegex(ValueError, "is no name of detectron2's ResNet"):
            to_torchvision(name)


if __name__ == "__main__":
    absltest.main()
