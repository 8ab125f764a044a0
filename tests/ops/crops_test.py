"""Tests of jigclu.ops.crops."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torchvision.transforms import RandomResizedCrop

from jigclu.ops import crops
from jigclu.ops.jigsaw import Box, patch_boxes
from jigclu.system.errors import UserError

SCALE = (0.2, 1.0)
RATIO = (3 / 4, 4 / 3)


def draw(region: Box, count: int, ratio: tuple[float, float] = RATIO) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.array([crops.random_resized_crop(random, region, SCALE, ratio) for _ in range(count)])


class RandomResizedCropTest(parameterized.TestCase):
    @parameterized.product(
        size=[(1, 1), (1, 90), (90, 1), (3, 2), (50, 50), (300, 400), (20, 500)],
        ratio=[RATIO, (1.0, 1.0), (0.1, 0.2), (5.0, 8.0)],
    )
    def test_crops_lie_inside_their_region(
        self, size: tuple[int, int], ratio: tuple[float, float]
    ) -> None:
        boxes = draw(Box(7, 11, *size), 300, ratio)
        top, left, height, width = boxes.T
        self.assertGreaterEqual(min(height.min(), width.min()), 1)
        self.assertGreaterEqual(top.min(), 7)
        self.assertGreaterEqual(left.min(), 11)
        self.assertLessEqual((top + height).max(), 7 + size[0])
        self.assertLessEqual((left + width).max(), 11 + size[1])

    @parameterized.parameters((240, 240), (200, 320), (100, 400))
    def test_crops_have_the_distribution_of_torchvisions(self, height: int, width: int) -> None:
        count = 4000
        ours = draw(Box(0, 0, height, width), count)
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        theirs = np.array(
            [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]
        )
        for column in range(4):
            quantiles = np.linspace(0.05, 0.95, 10)
            side = (height, width)[column % 2]
            np.testing.assert_allclose(
                np.quantile(ours[:, column], quantiles) / side,
                np.quantile(theirs[:, column], quantiles) / side,
                atol=0.035,
            )

    def test_area_is_uniform_in_scale(self) -> None:
        _, _, height, width = draw(Box(0, 0, 4000, 4000), 4000, ratio=(1.0, 1.0)).T
        shares = np.sort(height * width / 4000**2)
        np.testing.assert_allclose(shares, np.linspace(0.2, 1.0, 4000), atol=0.03)

    def test_falls_back_to_the_largest_central_crop(self) -> None:
        # A crop of at least 20% of this area and a ratio of 3/4 or more is too wide to fit.
        box = crops.random_resized_crop(np.random.default_rng(0), Box(5, 5, 1000, 9), SCALE, RATIO)
        self.assertEqual(box, (5 + 494, 5, 12, 9))

    def test_crops_depend_only_on_the_generator(self) -> None:
        region = Box(0, 0, 99, 88)
        np.testing.assert_array_equal(draw(region, 5), draw(region, 5))


class DrawsTest(absltest.TestCase):
    def test_jigsaw_crops_are_one_inside_each_region(self) -> None:
        regions = patch_boxes(100, 200, 3, 0.1)
        for seed in range(20):
            random = np.random.default_rng(seed)
            drawn = crops.jigsaw_crops(
                random, 100, 200, grid=3, cross_ratio=0.1, scale=SCALE, ratio=RATIO
            )
            for region, crop in zip(regions, drawn, strict=True):
                self.assertBetween(crop.top, region.top, region.top + region.height - crop.height)
                self.assertBetween(crop.left, region.left, region.left + region.width - crop.width)

    def test_two_views_are_independent_crops_of_the_whole_image(self) -> None:
        views = crops.two_views(np.random.default_rng(3), 100, 200, scale=SCALE, ratio=RATIO)
        random = np.random.default_rng(3)
        expected = [
            crops.random_resized_crop(random, Box(0, 0, 100, 200), SCALE, RATIO) for _ in range(2)
        ]
        self.assertEqual(views, expected)
        self.assertNotEqual(views[0], views[1])


class ScaledCropTest(parameterized.TestCase):
    @parameterized.parameters((30, 60), (200, 100), (64, 64))
    def test_crops_lie_inside_the_resized_image(self, height: int, width: int) -> None:
        random = np.random.default_rng(0)
        drawn = [crops.scaled_crop(random, height, width, (0.5, 2.0), 64) for _ in range(300)]
        for crop in drawn:
            self.assertBetween(crop.top, 0, max(0, crop.height - 64))
            self.assertBetween(crop.left, 0, max(0, crop.width - 64))
            self.assertAlmostEqual(crop.height / height, crop.width / width, delta=0.04)
        factors = np.sort([crop.height / height for crop in drawn])
        np.testing.assert_allclose(factors, np.linspace(0.5, 2.0, 300), atol=0.15)

    def test_positions_are_uniform_to_both_ends(self) -> None:
        random = np.random.default_rng(0)
        drawn = [crops.scaled_crop(random, 33, 20, (2.0, 2.0), 64) for _ in range(300)]
        self.assertEqual({crop[:2] for crop in drawn}, {(66, 40)})
        self.assertEqual({crop.top for crop in drawn}, {0, 1, 2})
        self.assertEqual({crop.left for crop in drawn}, {0})


class CheckCropTest(parameterized.TestCase):
    @parameterized.parameters((0.0, 1.0), (0.5, 0.2), (0.2, 1.1))
    def test_rejects_scales_out_of_range(self, low: float, high: float) -> None:
        with self.assertRaisesRegex(UserError, "crop_scale is"):
            crops.check_crop((low, high), RATIO)

    @parameterized.parameters((0.0, 1.0), (2.0, 1.0))
    def test_rejects_ratios_out_of_range(self, low: float, high: float) -> None:
        with self.assertRaisesRegex(UserError, "crop_ratio is"):
            crops.check_crop(SCALE, (low, high))


if __name__ == "__main__":
    absltest.main()
