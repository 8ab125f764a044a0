"""Tests of jigclu.ops.jigsaw."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.nn import functional

from jigclu.ops import jigsaw
from jigclu.system.errors import UserError


class PatchBoxesTest(parameterized.TestCase):
    def test_published_regions_in_published_order(self) -> None:
        boxes = jigsaw.patch_boxes(height=100, width=200, grid=2, cross_ratio=0.3)
        top_left, bottom_left, top_right, bottom_right = boxes
        self.assertEqual(top_left, (0, 0, 80, 160))
        self.assertEqual(bottom_left, (20, 0, 80, 160))
        self.assertEqual(top_right, (0, 40, 80, 160))
        self.assertEqual(bottom_right, (20, 40, 80, 160))

    def test_places_have_names_in_patch_order(self) -> None:
        self.assertEqual(
            jigsaw.place_names(4), ["top left", "bottom left", "top right", "bottom right"]
        )
        names = jigsaw.place_names(9)
        self.assertEqual((names[1], names[3]), ("row 2 column 1", "row 1 column 2"))
        self.assertLen(set(names), 9)

    @parameterized.product(
        grid=[2, 3, 5], cross_ratio=[0.0, 0.17, 0.3, 0.5], size=[(7, 5), (64, 64), (375, 500)]
    )
    def test_regions_cover_the_image_and_stay_inside(
        self, grid: int, cross_ratio: float, size: tuple[int, int]
    ) -> None:
        height, width = size
        covered = np.zeros(size, dtype=int)
        boxes = jigsaw.patch_boxes(height, width, grid, cross_ratio)
        self.assertLen(boxes, grid**2)
        for top, left, box_height, box_width in boxes:
            self.assertBetween(top, 0, height - box_height)
            self.assertBetween(left, 0, width - box_width)
            covered[top : top + box_height, left : left + box_width] += 1
        if min(size) >= 64:
            # Without overlap, rounding can leave lines of one pixel uncovered.
            self.assertGreater((covered > 0).mean(), 0.95)
        self.assertTrue(covered[0, 0] and covered[-1, 0] and covered[0, -1] and covered[-1, -1])

    @parameterized.parameters((2, 0.0), (5, 0.5))
    def test_accepts_grids_and_cross_ratios_in_range(self, grid: int, cross_ratio: float) -> None:
        jigsaw.check_grid(grid, cross_ratio)

    @parameterized.parameters(
        (1, 0.3, "grid is 1; it must be 2 or more"),
        (2, 0.6, r"cross_ratio is 0.6; it must be in \[0, 0.5\]"),
        (2, -0.1, "cross_ratio is -0.1"),
    )
    def test_rejects_grids_and_cross_ratios_out_of_range(
        self, grid: int, cross_ratio: float, message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            jigsaw.check_grid(grid, cross_ratio)


class MontageTest(parameterized.TestCase):
    @parameterized.parameters(2, 3, 4)
    def test_every_slot_has_its_place_in_a_montage(self, grid: int) -> None:
        slots = torch.randn(5 * grid**2, 3, 6, 4)
        montages = jigsaw.stitch_montages(slots, grid)
        self.assertEqual(montages.shape, (5, 3, 6 * grid, 4 * grid))
        for number, slot in enumerate(slots):
            montage, place = divmod(number, grid**2)
            row, column = divmod(place, grid)
            shown = montages[montage, :, 6 * row : 6 * (row + 1), 4 * column : 4 * (column + 1)]
            self.assertTrue(torch.equal(shown, slot))

    def test_example_in_the_module_docstring(self) -> None:
        images = torch.arange(2 * 4).view(2, 4, 1, 1, 1)  # a0 is 0, a1 is 1, b0 is 4, b3 is 7.
        in_patch_order = images.transpose(0, 1).flatten(0, 1)
        slots = in_patch_order[[7, 0, 4, 1, 2, 3, 5, 6]]
        b3_a0_a2_b0, a1_b1_b2_a3 = [[7, 0], [2, 4]], [[1, 5], [6, 3]]
        self.assertEqual(
            jigsaw.stitch_montages(slots, 2)[:, 0].tolist(), [b3_a0_a2_b0, a1_b1_b2_a3]
        )

    def test_slots_are_row_major(self) -> None:
        slots = torch.arange(4).reshape(4, 1, 1, 1)
        self.assertEqual(jigsaw.stitch_montages(slots, 2).tolist(), [[[[0, 1], [2, 3]]]])


class SplitFeaturesTest(parameterized.TestCase):
    def test_windows_overlap_on_an_odd_map_without_resizing(self) -> None:
        features = np.random.default_rng(0).normal(size=(2, 5, 7, 7)).astype(np.float32)
        expected = [
            features[image, :, rows, columns].mean(axis=(1, 2))
            for image in range(2)
            for rows in (slice(0, 4), slice(3, 7))
            for columns in (slice(0, 4), slice(3, 7))
        ]
        actual = jigsaw.split_features(torch.from_numpy(features), 2, None)
        np.testing.assert_allclose(actual.numpy(), np.stack(expected), atol=1e-6)

    @parameterized.parameters((2, 8), (4, 8), (3, 9))
    def test_resizing_a_map_to_its_own_size_changes_nothing(self, grid: int, side: int) -> None:
        features = torch.randn(2, 5, side, side)
        torch.testing.assert_close(
            jigsaw.split_features(features, grid, side), jigsaw.split_features(features, grid, None)
        )

    def test_resized_map_keeps_slots_in_place(self) -> None:
        # Each of 3x3 slots is constant on a 6x6 map; resizing to 9x9 nearly keeps its mean.
        slots = torch.arange(9.0).view(1, 1, 3, 3)
        features = slots.repeat_interleave(2, 2).repeat_interleave(2, 3)
        actual = jigsaw.split_features(features, 3, 9)
        self.assertEqual(actual.flatten().round().int().tolist(), list(range(9)))

    @parameterized.parameters((None, 3), (8, 2), (6, 3), (2, 2))
    def test_pooling_map_may_be_a_multiple_of_the_grid(
        self, pooling_map: int | None, grid: int
    ) -> None:
        jigsaw.check_pooling_map(pooling_map, grid)

    @parameterized.parameters((7, 2), (8, 3), (0, 2), (-8, 2), (1, 2))
    def test_rejects_pooling_maps_that_the_grid_does_not_divide(self, size: int, grid: int) -> None:
        with self.assertRaisesRegex(
            UserError, f"pooling_map is {size}; .* multiple of grid = {grid}"
        ):
            jigsaw.check_pooling_map(size, grid)


def arrange_montages(siblings: str, step: int, images: int, grid: int) -> tuple[Tensor, Tensor]:
    """Returns the images and the places that each montage shows, int64 [montages, grid**2]."""
    permutation = jigsaw.arrange_patches(siblings, 0, step, images, grid)
    rows = permutation.view(images, grid**2)
    return rows % images, rows // images


class ArrangementTest(parameterized.TestCase):
    def test_anywhere_is_the_published_permutation(self) -> None:
        expected = jigsaw.global_permutation(3, 7, 6 * 4)
        self.assertTrue(torch.equal(jigsaw.arrange_patches("anywhere", 3, 7, 6, 2), expected))

    @parameterized.product(
        siblings=["anywhere", "apart", "together"], size=[(4, 2), (7, 2), (9, 3), (10, 3)]
    )
    def test_each_patch_has_one_slot_that_depends_only_on_seed_and_step(
        self, siblings: str, size: tuple[int, int]
    ) -> None:
        first = jigsaw.arrange_patches(siblings, 3, 7, *size)
        self.assertEqual(sorted(first.tolist()), list(range(size[0] * size[1] ** 2)))
        self.assertTrue(torch.equal(first, jigsaw.arrange_patches(siblings, 3, 7, *size)))
        self.assertFalse(torch.equal(first, jigsaw.arrange_patches(siblings, 3, 8, *size)))
        self.assertFalse(torch.equal(first, jigsaw.arrange_patches(siblings, 4, 7, *size)))

    @parameterized.parameters((4, 2), (7, 2), (9, 3), (25, 3))
    def test_montages_of_patches_apart_show_different_images(self, images: int, grid: int) -> None:
        for step in range(20):
            for shown in arrange_montages("apart", step, images, grid)[0].tolist():
                self.assertLen(set(shown), grid**2)

    @parameterized.parameters((4, 2), (9, 3))
    def test_montages_of_patches_together_show_one_image(self, images: int, grid: int) -> None:
        shown, places = arrange_montages("together", 5, images, grid)
        self.assertTrue(torch.equal(shown, shown[:, :1].expand_as(shown)))
        self.assertEqual(places.sort(dim=1).values.tolist(), [list(range(grid**2))] * images)

    def test_images_that_are_apart_meet_equally_often(self) -> None:
        met = torch.zeros(8, 8)
        for step in range(400):
            shown = functional.one_hot(arrange_montages("apart", step, 8, 2)[0], 8).sum(1).float()
            met += shown.t() @ shown
        pairs = met[~torch.eye(8, dtype=torch.bool)]
        # Each of 8 montages has 6 of the 28 pairs.
        self.assertAlmostEqual(pairs.mean().item(), 400 * 8 * 6 / 28, places=2)
        self.assertLess((pairs / pairs.mean() - 1).abs().max().item(), 0.1)

    @parameterized.parameters("apart", "together")
    def test_all_slots_of_all_montages_show_all_places_equally_often(self, siblings: str) -> None:
        counts = torch.zeros(8 * 4, 4)
        for step in range(800):
            places = arrange_montages(siblings, step, 8, 2)[1].flatten()
            counts += functional.one_hot(places, 4)
        # Of 800 with a probability of 1/4, the deviation is 12.
        self.assertLess((counts - 200).abs().max().item(), 60)

    def test_place_does_not_follow_from_the_other_places_of_a_montage(self) -> None:
        _, places = arrange_montages("apart", 0, 400, 2)
        different = sum(len(set(row)) == 4 for row in places.tolist())
        # Four independent places are all different with a probability of 4! / 4**4 = 9.4%.
        self.assertBetween(different / 400, 0.05, 0.14)

    def test_rejects_unknown_arrangements(self) -> None:
        with self.assertRaisesRegex(
            UserError, "^siblings is 'near'; .* 'anywhere', 'apart', 'together'$"
        ):
            jigsaw.check_siblings("near")


class PermutationTest(absltest.TestCase):
    def test_permutation_depends_only_on_seed_and_step(self) -> None:
        first = jigsaw.global_permutation(seed=3, step=7, count=64)
        self.assertEqual(sorted(first.tolist()), list(range(64)))
        self.assertTrue(torch.equal(first, jigsaw.global_permutation(3, 7, 64)))
        self.assertFalse(torch.equal(first, jigsaw.global_permutation(3, 8, 64)))
        self.assertFalse(torch.equal(first, jigsaw.global_permutation(4, 7, 64)))

    def test_locations_follow_global_patch_order(self) -> None:
        # Patches of 3 images: all patches 0, then all patches 1.
        self.assertEqual(jigsaw.patch_locations(torch.arange(6), 3).tolist(), [0, 0, 0, 1, 1, 1])


if __name__ == "__main__":
    absltest.main()
