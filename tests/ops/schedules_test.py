"""Tests of jigclu.ops.schedules."""

import itertools
import math
from typing import Any

from absl.testing import absltest, parameterized

from jigclu.ops import schedules
from jigclu.system.errors import UserError

# Linear evaluation: a tenth at epochs 60 and 80 of 100.
TENTHS = schedules.StepDecay(milestones=[60, 80], factor=0.1)


def rate(step: int, steps_per_epoch: int, **changes: Any) -> float:
    """Returns a learning rate of the published schedule with changes."""
    settings: dict[str, Any] = {
        "learning_rate": 0.03,
        "epochs": 200,
        "warmup_epochs": 0.0,
        "per_epoch": True,
        "decay": schedules.CosineDecay(),
    }
    return schedules.learning_rate_at(step, steps_per_epoch, **settings | changes)


class LearningRateTest(parameterized.TestCase):
    # ImageNet at batch size 256 has 5004 steps per epoch.
    @parameterized.parameters(
        (0, 0.03),
        (50, 0.03 * (0.5 + math.sqrt(2) / 4)),
        (100, 0.015),
        (150, 0.03 * (0.5 - math.sqrt(2) / 4)),
        (199, 0.03 * math.sin(math.pi / 400) ** 2),
    )
    def test_published_cosine_is_constant_within_an_epoch(
        self, epoch: int, expected: float
    ) -> None:
        for step in (0, 1, 2502, 5003):
            self.assertAlmostEqual(rate(5004 * epoch + step, 5004), expected, places=12)

    def test_cosine_per_step_decreases_at_every_step(self) -> None:
        rates = [rate(step, 7, epochs=3, per_epoch=False) for step in range(21)]
        self.assertEqual(rates[0], 0.03)
        self.assertTrue(all(before > after for before, after in itertools.pairwise(rates)))
        self.assertAlmostEqual(rates[7], 0.03 * 0.75, places=12)
        self.assertAlmostEqual(rates[14], 0.03 * 0.25, places=12)

    @parameterized.parameters((0, 10), (59, 10), (60, 1), (79, 1), (80, 0.1), (99, 0.1))
    def test_step_decay_changes_at_milestones(self, epoch: int, expected: float) -> None:
        for step, per_epoch in ((0, True), (3, True), (0, False), (3, False)):
            actual = rate(
                4 * epoch + step,
                4,
                learning_rate=10.0,
                epochs=100,
                decay=TENTHS,
                per_epoch=per_epoch,
            )
            self.assertAlmostEqual(actual, expected, places=12)

    def test_warm_up_grows_linearly_to_the_full_rate(self) -> None:
        # 10 steps of warm-up in elevenths of the rate; the 11th step has the full rate.
        rates = [
            rate(step, 4, learning_rate=1.1, decay=TENTHS, warmup_epochs=2.5, epochs=100)
            for step in range(12)
        ]
        expected = [0.1 * (step + 1) for step in range(11)] + [1.1]
        for actual, value in zip(rates, expected, strict=True):
            self.assertAlmostEqual(actual, value, places=12)

    @parameterized.parameters(
        # 4 steps per epoch; warm-up takes 2 of 10 epochs and the cosine the other 8.
        (True, 8, 1.0),
        (True, 11, 1.0),
        (True, 24, 0.5),
        (True, 27, 0.5),
        (False, 8, 1.0),
        (False, 24, 0.5),
        (False, 32, 0.5 - math.sqrt(2) / 4),
        # If warm-up ends within an epoch, the rest of that epoch has the full rate.
        (True, 7, 1.0, 1.5),
    )
    def test_cosine_starts_at_the_full_rate_after_warm_up_and_spans_the_rest(
        self, per_epoch: bool, step: int, factor: float, warmup_epochs: float = 2.0
    ) -> None:
        actual = rate(step, 4, epochs=10, warmup_epochs=warmup_epochs, per_epoch=per_epoch)
        self.assertAlmostEqual(actual, 0.03 * factor, places=12)

    def test_rate_does_not_drop_when_warm_up_ends(self) -> None:
        rates = [rate(step, 2, epochs=2, warmup_epochs=1) for step in range(4)]
        for actual, expected in zip(rates, (0.01, 0.02, 0.03, 0.03), strict=True):
            self.assertAlmostEqual(actual, expected, places=12)

    def test_milestones_count_epochs_from_the_start_of_the_run(self) -> None:
        for step in (8, 239, 240, 320, 399):
            settings = {"epochs": 100, "decay": TENTHS}
            self.assertEqual(rate(step, 4, warmup_epochs=2, **settings), rate(step, 4, **settings))

    @parameterized.parameters(-0.1, 1.1, math.nan)
    def test_step_decay_rejects_factors_out_of_range(self, factor: float) -> None:
        with self.assertRaisesRegex(UserError, f"^factor is {factor}; it must be in"):
            schedules.StepDecay(milestones=(60,), factor=factor)


class PatchSizeTest(parameterized.TestCase):
    def test_patch_sizes_by_hand(self) -> None:
        smaller = ((2, 64), (5, 96))
        sizes = [schedules.patch_size_at(epoch, 112, smaller) for epoch in range(7)]
        self.assertEqual(sizes, [64, 64, 96, 96, 96, 112, 112])
        self.assertEqual(schedules.patch_size_at(0, 112, ()), 112)

    @parameterized.parameters((), ((1, 64),), ((1, 64), (9, 111)))
    def test_accepts_growing_patches(self, *smaller: tuple[int, int]) -> None:
        schedules.check_patch_sizes(112, smaller, 10)

    @parameterized.parameters(
        ((0, 64),),
        ((10, 64),),
        ((3, 0),),
        ((3, 112),),
        ((3, 64), (3, 96)),
        ((5, 64), (3, 96)),
        ((3, 96), (5, 64)),
        ((3, 64), (5, 64)),
    )
    def test_rejects_other_sizes_and_epochs(self, *smaller: tuple[int, int]) -> None:
        with self.assertRaisesRegex(UserError, r"smaller_patches is .*\(0, 10\).* = 112"):
            schedules.check_patch_sizes(112, smaller, 10)

    def test_rejects_patches_without_pixels(self) -> None:
        with self.assertRaisesRegex(UserError, "patch_size is 0; it must be 1 or more"):
            schedules.check_patch_sizes(0, (), 10)


if __name__ == "__main__":
    absltest.main()
