"""Tests of jigclu.models.encoder."""

import torch
import torchvision
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.models.batch_norm import BatchNorm
from jigclu.models.encoder import create_encoder, encoder_names
from jigclu.system.errors import UserError


class EncoderTest(parameterized.TestCase):
    def test_names_cover_the_resnet_family(self) -> None:
        names = encoder_names()
        depths = {f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
        self.assertContainsSubset(
            depths | {"resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"}, set(names)
        )
        self.assertTrue(all("resne" in name for name in names), names)

    @parameterized.parameters(
        ("resnet18", False, 64, 96, (512, 2, 3)),
        ("resnet18", False, 224, 224, (512, 7, 7)),
        ("resnet18", True, 32, 32, (512, 4, 4)),
        ("resnet18", True, 33, 41, (512, 5, 6)),
        ("resnet50", False, 64, 64, (2048, 2, 2)),
        ("resnet50", True, 32, 48, (2048, 4, 6)),
    )
    def test_feature_map_has_the_expected_shape(
        self, name: str, small_stem: bool, height: int, width: int, expected: tuple[int, int, int]
    ) -> None:
        encoder = create_encoder(name, small_stem)
        self.assertEqual(encoder.channels, expected[0])
        with torch.no_grad():
            self.assertEqual(encoder(torch.randn(2, 3, height, width)).shape, (2, *expected))

    @parameterized.parameters("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
    def test_state_has_torchvisions_names_without_fc(self, name: str) -> None:
        theirs = torchvision.models.get_model(name, weights=None)
        expected = {
            key: value.shape
            for key, value in theirs.state_dict().items()
            if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        actual = {
            key: value.shape for key, value in create_encoder(name, False).state_dict().items()
        }
        self.assertEqual(actual, expected)

    def test_features_equal_torchvisions(self) -> None:
        theirs = torchvision.models.resnet18(weights=None)
        encoder = create_encoder("resnet18", False)
        encoder.load_state_dict(theirs.state_dict(), strict=False)
        theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            actual, expected = encoder.double()(images), theirs.double()(images)
        # Sums have another order in matrix products; float32 would need loose tolerances.
        torch.testing.assert_close(actual.flatten(1), expected, rtol=1e-9, atol=1e-11)

    def test_uses_batch_norm_over_all_ranks(self) -> None:
        kinds = {type(module) for module in create_encoder("resnet18", False).modules()}
        self.assertIn(BatchNorm, kinds)
        self.assertNotIn(nn.BatchNorm2d, kinds)

    @parameterized.parameters((0, 2), (1, 4), (2, 8))
    def test_dilated_stages_keep_the_size_of_the_map(self, stages: int, side: int) -> None:
        encoder, plain = (create_encoder("resnet50", False, number) for number in (stages, 0))
        encoder.load_state_dict(plain.state_dict())
        with torch.no_grad():
            self.assertEqual(encoder(torch.randn(1, 3, 64, 64)).shape, (1, 2048, side, side))

    @parameterized.parameters(("resnet50", 3, "0, 1 or 2"), ("resnet18", 1, "0 for resnet18"))
    def test_rejects_dilation_out_of_range(self, name: str, stages: int, message: str) -> None:
        with self.assertRaisesRegex(UserError, f"dilated_stages is {stages}; it must be {message}"):
            create_encoder(name, False, stages)

    def test_unknown_name_suggests_the_nearest(self) -> None:
        for name, nearest in (("resnet_50", "resnet50"), ("ResNet18", "resnet18")):
            with self.assertRaisesRegex(
                UserError, f"encoder '{name}' is unknown; did you mean '{nearest}"
            ) as caught:
                create_encoder(name, False)
            self.assertIn("wide_resnet101_2", str(caught.exception))

    def test_unknown_name_without_a_near_one_gets_the_list(self) -> None:
        for name in ("", "qqq"):
            with self.assertRaisesRegex(
                UserError, f"^encoder '{name}' is unknown; encoders are .* wide_resnet101_2"
            ):
                create_encoder(name, False)


if __name__ == "__main__":
    absltest.main()
