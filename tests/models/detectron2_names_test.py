"""Tests of jigclu.models.detectron2_names."""

import itertools

import torch
from absl.testing import absltest, parameterized

from jigclu.models.detectron2_names import to_detectron2, to_torchvision
from jigclu.models.encoder import create_encoder, encoder_names

_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _names_of_resnet50(layout: str) -> list[str]:
    """Lists what detectron2 builds for R50, from its architecture."""
    backbone, res5 = {
        "fpn": ("backbone.bottom_up.", "backbone.bottom_up."),
        "c4": ("backbone.", "roi_heads."),
    }[layout]
    convolutions = [f"{backbone}stem.conv1"]
    for stage, blocks in (("res2", 3), ("res3", 4), ("res4", 6), ("res5", 3)):
        place = (res5 if stage == "res5" else backbone) + stage
        for block in range(blocks):
            shortcut = ["shortcut"] if block == 0 else []
            convolutions += [f"{place}.{block}.{c}" for c in ("conv1", "conv2", "conv3", *shortcut)]
    assert len(convolutions) == 53
    tensors = [f"{convolution}.weight" for convolution in convolutions]
    return tensors + [f"{c}.norm.{statistic}" for c in convolutions for statistic in _STATISTICS]


class Detectron2NamesTest(parameterized.TestCase):
    @parameterized.parameters("fpn", "c4")
    def test_resnet50_has_exactly_the_names_of_detectron2(self, layout: str) -> None:
        with torch.device("meta"):
            tensors = create_encoder("resnet50", False).state_dict()
        names = [to_detectron2(name, layout) for name in tensors]
        self.assertLen(names, 53 + 53 * 4)
        self.assertCountEqual(names, _names_of_resnet50(layout))

    @parameterized.parameters(
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"),
        ("layer3.5.conv3.weight", "res4.5.conv3.weight"),
        ("layer3.22.bn2.bias", "res4.22.conv2.norm.bias"),
    )
    def test_names_in_both_layouts(self, torchvision: str, detectron2: str) -> None:
        in_fpn = f"backbone.bottom_up.{detectron2}"
        self.assertEqual(to_detectron2(torchvision, "fpn"), in_fpn)
        self.assertEqual(to_torchvision(in_fpn, "fpn"), torchvision)
        in_c4 = ("roi_heads." if detectron2.startswith("res5") else "backbone.") + detectron2
        self.assertEqual(to_detectron2(torchvision, "c4"), in_c4)
        self.assertEqual(to_torchvision(in_c4, "c4"), torchvision)

    def test_round_trip_for_every_encoder(self) -> None:
        for encoder in encoder_names():
            with torch.device("meta"):
                names = create_encoder(encoder, False).state_dict()
            for name, layout in itertools.product(names, ("fpn", "c4")):
                self.assertEqual(to_torchvision(to_detectron2(name, layout), layout), name)

    @parameterized.parameters("fc.weight", "layer5.0.conv1.weight", "encoder.conv1.weight", "")
    def test_rejects_other_torchvision_names(self, name: str) -> None:
        with self.assertRaisesRegex(ValueError, "is not a name in torchvision's ResNet"):
            to_detectron2(name, "fpn")

    @parameterized.parameters(
        ("stem.conv1.weight", "fpn"),
        ("backbone.res2.0.conv1.weight", "fpn"),
        ("backbone.bottom_up.res6.0.conv1.bias", "fpn"),
        ("backbone.res5.0.conv1.weight", "c4"),
        ("roi_heads.res4.0.conv1.weight", "c4"),
        ("backbone.bottom_up.stem.conv1.weight", "c4"),
    )
    def test_rejects_other_detectron2_names(self, name: str, layout: str) -> None:
        with self.assertRaisesRegex(ValueError, "is not a name in detectron2's ResNet"):
            to_torchvision(name, layout)


if __name__ == "__main__":
    absltest.main()
