"""Cached features are complete or absent, with concurrent runs and on a full disk."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest
from numpy.typing import NDArray

from jigclu.data.images import ImageDataset
from jigclu.models.encoder import Encoder
from jigclu.system.errors import UserError
from jigclu.tasks import feature_cache
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.training import features
from tests.folder_case import FolderTestCase
from tests.samples import MemorySource, eval_transform, noise, small_encoder
from tests.training.features_test import SETTINGS

TRANSFORM = eval_transform(resize=32, crop=32)
IMAGES = ImageDataset(source=MemorySource([*noise(7, 3, 32, 32)]), transform=TRANSFORM)


class FeatureCacheTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path) / "cache"
        self.cache = FeatureCache(folder=str(self.folder), views=0)

    def features(self, encoder: Encoder | None = None) -> NDArray[np.float16]:
        return self.cache.features(encoder or small_encoder(), IMAGES, "noise", SETTINGS)

    def test_features_equal_those_of_the_encoder_and_are_computed_once(self) -> None:
        pieces = [piece for piece, _ in features.encode(small_encoder(), IMAGES, SETTINGS)]
        expected = torch.cat(pieces).half().numpy()
        np.testing.assert_array_equal(self.features(), expected)
        self.assertLen(list(self.folder.iterdir()), 1)
        with mock.patch.object(feature_cache, "encode", side_effect=AssertionError):
            np.testing.assert_array_equal(self.features(), expected)

    def test_two_runs_may_compute_the_same_features_at_once(self) -> None:
        """The other run starts after a batch of this one, and finishes first."""
        others: list[NDArray[np.float16]] = []

        def encode(*arguments: Any) -> Iterator[Any]:
            for number, batch in enumerate(features.encode(*arguments)):
                yield batch
                if number == 0 and not others:
                    others.append(np.zeros(0, np.float16))
                    others[0] = np.array(self.features())

        with mock.patch.object(feature_cache, "encode", encode):
            own = self.features()
        np.testing.assert_array_equal(own, others[0])
        self.assertTrue((own != 0).any(1).all())
        self.assertLen(list(self.folder.iterdir()), 1)

    def test_files_of_another_shape_or_type_are_rejected(self) -> None:
        expected = self.features()
        (path,) = self.folder.iterdir()
        for wrong in (np.array(expected[:-1]), expected.astype(np.float32), path.read_bytes()[:-1]):
            if isinstance(wrong, bytes):
                path.write_bytes(wrong)
            else:
                np.save(path, wrong)
            with self.assertRaisesRegex(UserError, r"corrupt .*, expected float16 \[7, .*remove"):
                self.features()
            np.save(path, np.array(expected))

    def test_full_disk_is_reported_before_writing(self) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch.object(os, "posix_fallocate", side_effect=full),
            self.assertRaisesRegex(
                UserError, "No space left on device.*another feature_cache.folder"
            ),
        ):
            self.features()
        self.assertEmpty(list(self.folder.iterdir()))

    def test_interruption_leaves_no_file(self) -> None:
        with (
            mock.patch.object(feature_cache, "encode", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self.features()
        self.assertEmpty(list(self.folder.iterdir()))

    def test_rejects_a_negative_number_of_views(self) -> None:
        with self.assertRaisesRegex(UserError, "^views is -1; it must be 0 or more"):
            FeatureCache(folder="cache", views=-1)

    def test_rejects_features_beyond_float16(self) -> None:
        encoder = small_encoder()
        encoder.get_parameter("layer4.0.bn2.bias").data[0] = 1e6
        with self.assertRaisesRegex(UserError, "exceed the range of float16"):
            self.features(encoder)


if __name__ == "__main__":
    absltest.main()
