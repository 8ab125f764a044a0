"""Tests of jigclu.detection.masks."""

import importlib.util

import numpy as np
from absl.testing import absltest, parameterized

from jigclu.detection import masks

SIZE = (6, 8)


class MasksTest(parameterized.TestCase):
    @parameterized.parameters(
        [[[0, 0, 8, 0, 8, 6.5]]],
        # Four columns of zeros, one of ones, and the other zeros.
        [{"size": [6, 8], "counts": [24, 6, 18]}],
        [{"size": [6, 8], "counts": "h06b0"}],
        # An object that starts with the first pixel.
        [{"size": [6, 8], "counts": [0, 48]}],
    )
    def test_accepts_polygons_and_run_lengths(self, mask: object) -> None:
        self.assertIsNone(masks.describe_problem(mask, SIZE, is_known=False))

    @parameterized.parameters(
        ([[1, 2, 3, 4, 5, float("nan")]], "a coordinate that is not a finite number"),
        ([[1, 2, 3, 4, 5, float("inf")]], "a coordinate that is not a finite number"),
        ([[1, 2, 3, 4, 5, "6"]], "a coordinate that is not a finite number"),
        ([[1, 2, 3, 4, 5, 1e9]], "a coordinate far outside its image"),
        ({"size": [6, 8], "counts": ["48"]}, "invalid counts"),
        ({"size": [6, 8], "counts": [48.0]}, "invalid counts"),
        ({"size": [6, 8], "counts": [-1, 49]}, "invalid counts"),
        ({"size": [6, 8], "counts": "h06b"}, "invalid counts"),
        ({"size": [6, 8], "counts": "h06 b0"}, "invalid counts"),
        ({"size": [6, 8], "counts": ""}, r"do not add up to the size \[6, 8\]"),
        ({"size": [6, 8], "counts": "h06"}, r"do not add up to the size \[6, 8\]"),
    )
    def test_says_what_is_wrong(self, mask: object, problem: str) -> None:
        found = masks.describe_problem(mask, SIZE, is_known=False)
        self.assertRegex(found or "", problem)

    @absltest.skipIf(importlib.util.find_spec("pycocotools") is None, "needs pycocotools")
    def test_accepts_all_that_pycocotools_writes(self) -> None:
        from pycocotools import mask as run_lengths

        random = np.random.default_rng(0)
        for density in (0, 0.001, 0.1, 0.5, 1):
            pixels = random.random((300, 400)) < density
            encoded = run_lengths.encode(np.asfortranarray(pixels, dtype=np.uint8))
            mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            self.assertIsNone(masks.describe_problem(mask, pixels.shape, is_known=False))
            lengths = masks._decompress(mask["counts"])
            assert lengths is not None
            values = np.arange(len(lengths)) % 2
            np.testing.assert_array_equal(np.repeat(values, lengths), pixels.ravel("F"))


if __name__ == "__main__":
    absltest.main()
