"""Tests of jigclu.data.patches."""

import os
from typing import Any

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image
from torch import Tensor

from jigclu.data import patches, sources
from jigclu.data.decode import UnreadableImageError
from jigclu.errors import UserError

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "grid": 2,
    "cross_ratio": 0.3,
    "patch_size": 16,
    "scale": (0.2, 1.0),
    "ratio": (3 / 4, 4 / 3),
}


class MemorySource:
    """Images by number; those that are None cannot be read."""

    def __init__(self, images: list[Tensor | None], labels: list[int] | None = None) -> None:
        self.classes: list[str] = []
        self.labels = labels
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def fingerprint(self, deep: bool) -> str:
        return "memory"

    def read(self, index: int) -> Tensor:
        image = self._images[index]
        if image is None:
            raise UnreadableImageError("made so")
        return image

    def name(self, index: int) -> str:
        return f"memory {index}"


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator())


def dataset(source: sources.Source, **changes: Any) -> patches.PatchDataset:
    return patches.PatchDataset(source=source, **{**SETTINGS, **changes})


class PatchDatasetTest(parameterized.TestCase):
    @parameterized.parameters((2, 4), (3, 9))
    def test_returns_uint8_patches(self, grid: int, count: int) -> None:
        sample = dataset(MemorySource([noise(3, 50, 70)] * 3), grid=grid)[0, 2]
        self.assertEqual(sample.patches.dtype, torch.uint8)
        self.assertEqual(sample.patches.shape, (count, 3, 16, 16))
        self.assertEqual((sample.image_index, sample.unreadable), (2, 0))

    def test_every_patch_shows_its_own_corner(self) -> None:
        image = torch.zeros(3, 80, 80, dtype=torch.uint8)
        image[0, 40:] = 255  # Red: the lower half.
        image[1, :, 40:] = 255  # Green: the right half.
        source = MemorySource([image])
        means = torch.stack(
            [
                dataset(source, cross_ratio=0.0)[0, 0].patches,
                dataset(source, cross_ratio=0.0)[5, 0].patches,
            ]
        )
        red = means[:, :, 0].flatten(2)
        green = means[:, :, 1].flatten(2)
        # Column-major: top-left, bottom-left, top-right, bottom-right.
        for patch, (lower, right) in enumerate([(0, 0), (255, 0), (0, 255), (255, 255)]):
            self.assertTrue((red[:, patch] == lower).all())
            self.assertTrue((green[:, patch] == right).all())

    def test_whole_regions_are_the_patch_boxes(self) -> None:
        image = noise(3, 20, 20)
        sample = dataset(MemorySource([image]), patch_size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))[
            0, 0
        ]
        expected = [image[:, t : t + 16, x : x + 16] for x in (0, 4) for t in (0, 4)]
        self.assertTrue(torch.equal(sample.patches, torch.stack(expected)))

    def test_is_a_function_of_seed_epoch_and_index(self) -> None:
        source = MemorySource([noise(3, 50, 70)] * 4)
        data = dataset(source)
        np.random.seed(1)
        torch.manual_seed(1)
        first = data[3, 1].patches
        _ = data[3, 2], np.random.uniform(), torch.rand(1)
        self.assertTrue(torch.equal(first, dataset(source)[3, 1].patches))
        for other in (data[4, 1], data[3, 2], dataset(source, seed=1)[3, 1]):
            self.assertFalse(torch.equal(first, other.patches))

    def test_unreadable_images_are_replaced_and_counted(self) -> None:
        good = noise(3, 40, 40)
        source = MemorySource([good, None, noise(3, 1, 40), None])
        with self.assertLogs(level="WARNING") as logs:
            sample = dataset(source, scale=(1.0, 1.0), ratio=(1.0, 1.0))[0, 1]
        self.assertEqual((sample.image_index, sample.unreadable), (1, 3))
        expected = dataset(source, scale=(1.0, 1.0), ratio=(1.0, 1.0))[0, 0]
        self.assertTrue(torch.equal(sample.patches, expected.patches))
        self.assertIn("memory 1 (made so)", logs.output[0])
        self.assertIn("memory 2 (40x1 pixels", logs.output[1])

    def test_a_corrupt_file_is_counted(self) -> None:
        root = self.create_tempdir().full_path
        Image.new("RGB", (30, 20), "red").save(os.path.join(root, "b.jpg"))
        self.create_tempfile(os.path.join(root, "a.jpg"), content="no image")
        sample = dataset(sources.UnlabelledImages(root))[0, 0]
        self.assertEqual(sample.unreadable, 1)
        self.assertGreater(sample.patches[:, 0].min(), 240)

    def test_stops_when_nothing_is_readable(self) -> None:
        with self.assertRaisesRegex(UserError, "3 images in a row .* memory 0 .made so"):
            dataset(MemorySource([None] * 3))[0, 1]
        with self.assertRaisesRegex(UserError, "100 images in a row"):
            dataset(MemorySource([None] * 300))[0, 0]

    @parameterized.parameters(
        ("grid", 1),
        ("cross_ratio", 0.7),
        ("patch_size", 0),
        ("scale", (0.0, 1.0)),
        ("ratio", (2, 1)),
    )
    def test_refuses_bad_settings(self, name: str, value: Any) -> None:
        with self.assertRaisesRegex(UserError, f"{name} is"):
            dataset(MemorySource([]), **{name: value})


class ImageDatasetTest(parameterized.TestCase):
    def test_is_the_centre_of_the_resized_image(self) -> None:
        image = noise(3, 16, 30)
        source = MemorySource([image, image], labels=[7, 9])
        shown, label, index = patches.ImageDataset(source=source, resize=16, crop=10)[1]
        self.assertTrue(torch.equal(shown, image[:, 3:13, 10:20]))
        self.assertEqual((label, index), (9, 1))

    @parameterized.parameters((40, 60), (60, 40), (8, 100))
    def test_shape_and_absent_label(self, height: int, width: int) -> None:
        source = MemorySource([noise(3, height, width)])
        sample = patches.ImageDataset(source=source, resize=32, crop=28)[0]
        self.assertEqual((sample.image.dtype, sample.image.shape), (torch.uint8, (3, 28, 28)))
        self.assertEqual(sample.label, -1)

    def test_refuses_unreadable_images_and_large_crops(self) -> None:
        with self.assertRaisesRegex(UserError, "memory 0 is unreadable .made so"):
            patches.ImageDataset(source=MemorySource([None]), resize=32, crop=28)[0]
        with self.assertRaisesRegex(UserError, "crop is 40; it must lie in"):
            patches.ImageDataset(source=MemorySource([None]), resize=32, crop=40)


if __name__ == "__main__":
    absltest.main()
