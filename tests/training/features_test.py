"""Features equal a computation by hand; each image is encoded by exactly one rank."""

import re
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.data.images import ImageDataset
from jigclu.system import progress
from jigclu.training import features
from jigclu.training.finite import Diverged
from tests.ranks import run_on_ranks
from tests.samples import MemorySource, eval_transform, noise, small_encoder
from tests.terminal import progress_log

SETTINGS = features.FeatureSettings(
    transform=eval_transform(32, 32),
    batch_size=3,
    batch_size_name="batch_size",
    workers=0,
    prefetch=2,
    timeout=60,
    precision=torch.float32,
)


def seven_images() -> ImageDataset:
    pixels = noise(7, 3, 32, 32)
    source = MemorySource([*pixels], labels=[*range(7)])
    return ImageDataset(source=source, transform=SETTINGS.transform)


def indices_and_features() -> tuple[Tensor, Tensor]:
    """Returns indices and features of this rank's share."""
    pieces = [
        (batch.image_index, piece)
        for piece, batch in features.encode(small_encoder(), seven_images(), SETTINGS)
    ]
    indices, values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return indices, values


def all_features() -> Tensor:
    """Returns the features of all images, exchanged three rows at a time."""
    with mock.patch.object(features, "_ROWS", 3):
        pieces = [*features.encode_in_order(small_encoder(), seven_images(), SETTINGS)]
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    return torch.cat(pieces)


class EncodeInOrderTest(absltest.TestCase):
    def test_every_rank_has_the_features_of_all_images_in_order(self) -> None:
        indices, expected = indices_and_features()
        self.assertEqual(indices.tolist(), [*range(7)])
        torch.testing.assert_close(all_features(), expected, rtol=0, atol=0)
        for ranks in (2, 3):
            for values in run_on_ranks(all_features, ranks):
                torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)


class EncodeTest(absltest.TestCase):
    def test_features_are_pooled_maps_of_normalized_images(self) -> None:
        _, actual = indices_and_features()
        encoder = small_encoder().eval()
        transform = SETTINGS.transform
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
        for index, row in enumerate(actual):
            image = seven_images()[index].image.float() / 255
            with torch.no_grad():
                expected = encoder(((image - mean) / std)[None]).mean((2, 3))[0]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)

    def test_every_image_is_encoded_by_one_rank(self) -> None:
        indices, values = indices_and_features()
        self.assertEqual(indices.tolist(), [*range(7)])
        of_ranks = run_on_ranks(indices_and_features, 2)
        shared = torch.cat([rank_indices for rank_indices, _ in of_ranks])
        self.assertCountEqual(shared.tolist(), [*range(7)])
        for rank_indices, rank_values in of_ranks:
            torch.testing.assert_close(rank_values, values[rank_indices], rtol=1e-4, atol=1e-5)

    def test_encoder_stays_unchanged(self) -> None:
        encoder = small_encoder().train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        # A caller may stop early.
        next(features.encode(encoder, seven_images(), SETTINGS))
        self.assertTrue(all(module.training for module in encoder.modules()))
        for name, value in encoder.state_dict().items():
            self.assertTrue(torch.equal(value, before[name]), name)

    def test_shows_how_many_images_are_encoded(self) -> None:
        with progress_log() as log:
            for _ in features.encode(small_encoder(), seven_images(), SETTINGS):
                progress.CONSOLE.tick()
        counts = re.findall(r"encoding images, (\d) of 7", log.getvalue())
        # Once at the start, then at each batch.
        self.assertEqual(counts, ["0", "0", "3", "6"])

    def test_images_of_one_color_are_counted_in_one_warning(self) -> None:
        pixels = noise(7, 3, 32, 32)
        pixels[[2, 5]] = 9
        images = ImageDataset(source=MemorySource([*pixels]), transform=SETTINGS.transform)
        with self.assertLogs(level="WARNING") as logs:
            list(features.encode(small_encoder(), images, SETTINGS))
        self.assertLen(logs.output, 1)
        self.assertIn("2 of 7 images have only one color, such as memory 2", logs.output[0])

    def test_rejects_features_that_are_not_finite(self) -> None:
        encoder = small_encoder()
        encoder.get_parameter("layer4.0.bn2.bias").data[0] = torch.nan
        with self.assertRaisesRegex(Diverged, "not finite: its training diverged"):
            next(features.encode(encoder, seven_images(), SETTINGS))

    def test_gradients_are_off_in_the_encoder_only(self) -> None:
        for piece, _ in features.encode(small_encoder(), seven_images(), SETTINGS):
            self.assertFalse(piece.requires_grad)
            self.assertTrue(torch.is_grad_enabled())

    def test_precision_applies_to_the_encoder_only(self) -> None:
        images = seven_images()
        exact = torch.cat([p for p, _ in features.encode(small_encoder(), images, SETTINGS)])
        rough_settings = SETTINGS._replace(precision=torch.bfloat16)
        rough = torch.cat([p for p, _ in features.encode(small_encoder(), images, rough_settings)])
        self.assertEqual(rough.dtype, torch.float32)
        self.assertFalse(torch.equal(rough, exact))
        torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


if __name__ == "__main__":
    absltest.main()
