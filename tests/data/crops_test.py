"""Tests of jigclu.data.crops."""

import functools
import os
import pickle
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import crops, folders, sources
from jigclu.ops.crops import jigsaw_crops, two_views
from jigclu.ops.jigsaw import Box
from jigclu.system.errors import UserError
from tests.samples import MemorySource, noise

DRAW: dict[str, Any] = {
    "grid": 2,
    "cross_ratio": 0.3,
    "scale": (0.2, 1.0),
    "ratio": (3 / 4, 4 / 3),
}
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "batch_size": 1,
    "size": 16,
    "smaller_sizes": (),
    "least_side": 2,
    "scaled_decoding": True,
}


def dataset(source: sources.Source, **changes: Any) -> crops.CropDataset:
    """Returns the patches of a source; changes override `DRAW` and `SETTINGS`."""
    draw = {name: changes.pop(name, value) for name, value in DRAW.items()}
    settings = {"draw": functools.partial(jigsaw_crops, **draw)} | SETTINGS | changes
    return crops.CropDataset(source=source, **settings)


class CropDatasetTest(parameterized.TestCase):
    @parameterized.parameters((2, 4), (3, 9))
    def test_returns_uint8_crops(self, grid: int, count: int) -> None:
        sample = dataset(MemorySource([noise(3, 50, 70)] * 3), grid=grid)[0, 2]
        self.assertEqual(sample.crops.dtype, torch.uint8)
        self.assertEqual(sample.crops.shape, (count, 3, 16, 16))
        self.assertEqual((sample.unreadable, sample.one_color), ({}, ()))

    def test_every_patch_comes_from_its_own_corner(self) -> None:
        image = torch.zeros(3, 80, 80, dtype=torch.uint8)
        image[0, 40:] = 255  # The lower half is red.
        image[1, :, 40:] = 255  # The right half is green.
        source = MemorySource([image])
        means = torch.stack(
            [
                dataset(source, cross_ratio=0.0)[0, 0].crops,
                dataset(source, cross_ratio=0.0)[5, 0].crops,
            ]
        )
        red = means[:, :, 0].flatten(2)
        green = means[:, :, 1].flatten(2)
        # Column-major: top-left, bottom-left, top-right, bottom-right.
        for patch, (lower, right) in enumerate([(0, 0), (255, 0), (0, 255), (255, 255)]):
            self.assertTrue((red[:, patch] == lower).all())
            self.assertTrue((green[:, patch] == right).all())

    def test_crops_of_scale_one_are_the_patch_regions(self) -> None:
        image = noise(3, 20, 20)
        sample = dataset(MemorySource([image]), size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0))[0, 0]
        expected = [image[:, t : t + 16, x : x + 16] for x in (0, 4) for t in (0, 4)]
        self.assertTrue(torch.equal(sample.crops, torch.stack(expected)))

    def test_crops_depend_only_on_seed_epoch_and_index(self) -> None:
        source = MemorySource([noise(3, 50, 70)] * 4)
        data = dataset(source)
        np.random.seed(1)
        torch.manual_seed(1)
        first = data[3, 1].crops
        _ = data[3, 2], np.random.uniform(), torch.rand(1)
        self.assertTrue(torch.equal(first, dataset(source)[3, 1].crops))
        for other in (data[4, 1], data[3, 2], dataset(source, seed=1)[3, 1]):
            self.assertFalse(torch.equal(first, other.crops))

    def test_early_epochs_use_smaller_patches(self) -> None:
        source = MemorySource([noise(3, 50, 70)])
        data = dataset(source, smaller_sizes=((2, 8), (3, 12)))
        sides = [data[epoch, 0].crops.shape[-1] for epoch in range(5)]
        self.assertEqual(sides, [8, 8, 12, 16, 16])
        self.assertTrue(torch.equal(data[1, 0].crops, dataset(source, size=8)[1, 0].crops))

    def test_scaled_decoding_returns_nearly_the_same_crops(self) -> None:
        rows, columns = np.mgrid[0:300, 0:400]
        waves = [
            127 + 120 * np.sin(rows / a + columns / b) for a, b in ((90, 120), (150, 60), (75, 180))
        ]
        root = self.create_tempdir().full_path
        Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(
            os.path.join(root, "a.jpg"), quality=95, subsampling=0
        )
        source = folders.UnlabeledImages(root)
        with mock.patch.object(source, "read", wraps=source.read) as read:
            for epoch in range(10):
                scaled = dataset(source)[epoch, 0].crops
                plain = dataset(source, scaled_decoding=False)[epoch, 0].crops
                # Edges of crops are rounded to pixels of an image of up to an eighth of the side;
                # the waves change by at most 3 per pixel of the full image.
                difference = (scaled.float() - plain.float()).abs().mean()
                self.assertLess(difference, 4)
                unrelated = (plain.float() - plain.roll(1, 0).float()).abs().mean()
                self.assertGreater(unrelated, 5 * difference)
        factors = [call.args[1](300, 400) for call in read.call_args_list]
        self.assertEqual(factors[1::2], [1] * 10)
        # Crops of 240x320 regions have sides of at least 90 pixels, so an image of a quarter of
        # the side suffices for patches of 16 pixels.
        self.assertContainsSubset({4, 8}, set(factors[::2]))
        self.assertNotIn(1, factors[::2])

    def test_scaled_decoding_keeps_the_pixels_of_every_patch(self) -> None:
        data = dataset(MemorySource([]), size=40)
        shrunk = 0
        for epoch in range(50):
            plan = crops._CropPlan(functools.partial(data._draw_boxes, epoch, 0), 40)
            factor = plan.reduction(400, 500)
            image = torch.empty(3, -(-400 // factor), -(-500 // factor))
            sides = [min(crop.height, crop.width) for crop in plan.boxes(image)]
            self.assertTrue(factor == 1 or min(sides) >= 40)
            full = [min(crop.height, crop.width) for crop in data._draw_boxes(epoch, 0, 400, 500)]
            self.assertTrue(factor == 8 or min(full) < 2 * factor * 40)
            shrunk += factor > 1
        self.assertBetween(shrunk, 10, 50)

    def test_crops_are_scaled_to_the_shrunk_image(self) -> None:
        drawn = [Box(0, 0, 80, 100), Box(41, 13, 60, 87)]
        plan = crops._CropPlan(lambda height, width: drawn, 10)
        self.assertEqual(plan.boxes(torch.empty(3, 101, 100)), drawn)
        self.assertEqual(plan.reduction(101, 100), 4)
        shrunk = plan.boxes(torch.empty(3, 26, 25))
        self.assertEqual(shrunk, [Box(0, 0, 21, 25), Box(11, 3, 15, 22)])

    def test_unreadable_images_are_replaced_and_counted(self) -> None:
        good = noise(3, 40, 40)
        source = MemorySource([good, None, noise(3, 1, 40), None])
        data = dataset(source, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        samples = [data[epoch, 1] for epoch in range(9)]
        for sample in samples:
            self.assertTrue(torch.equal(sample.crops, data[0, 0].crops))
            self.assertIn((1, "unreadable on purpose"), sample.unreadable.items())
        found = {index: why for sample in samples for index, why in sample.unreadable.items()}
        self.assertCountEqual(found, [1, 2, 3])
        self.assertStartsWith(found[2], "40x1 pixels; the shorter side")

    def test_corrupt_files_are_replaced_and_counted(self) -> None:
        root = self.create_tempdir().full_path
        Image.new("RGB", (30, 20), "red").save(os.path.join(root, "b.jpg"))
        self.create_tempfile(os.path.join(root, "a.jpg"), content="not an image")
        sample = dataset(folders.UnlabeledImages(root))[0, 0]
        self.assertCountEqual(sample.unreadable, [0])
        self.assertEqual(sample.one_color, (1,))
        self.assertGreater(sample.crops[:, 0].min(), 240)

    def test_stops_if_no_image_is_readable(self) -> None:
        with self.assertRaisesRegex(
            UserError, r"3 consecutive images .* memory \d .unreadable on purpose"
        ):
            dataset(MemorySource([None] * 3))[0, 1]
        with self.assertRaisesRegex(UserError, "100 consecutive images"):
            dataset(MemorySource([None] * 300))[0, 0]

    def test_two_views_are_crops_of_the_whole_image(self) -> None:
        image = noise(3, 16, 16)
        draw = functools.partial(two_views, scale=(1.0, 1.0), ratio=(1.0, 1.0))
        sample = dataset(MemorySource([image]), draw=draw, least_side=1)[0, 0]
        self.assertTrue(torch.equal(sample.crops, torch.stack([image, image])))

    def test_pickled_dataset_draws_the_same_crops(self) -> None:
        data = dataset(MemorySource([noise(3, 50, 70)]))
        again = pickle.loads(pickle.dumps(data))
        self.assertTrue(torch.equal(again[1, 0].crops, data[1, 0].crops))


if __name__ == "__main__":
    absltest.main()
