"""Tests of jigclu.detection.schedule."""

from absl.testing import absltest, parameterized

from jigclu.detection import schedule
from jigclu.detection.schedule import Schedule
from jigclu.system.errors import UserError

COCO = Schedule(8, 0.01, 180_000, (120_000, 160_000), 1000, 0, 5000)


class ScheduleTest(parameterized.TestCase):
    def test_half_the_images_give_hand_computed_values(self) -> None:
        self.assertEqual(
            schedule.rescale(COCO, 4),
            Schedule(4, 0.005, 360_000, (240_000, 320_000), 2000, 0, 10_000),
        )

    def test_twice_the_images_give_hand_computed_values(self) -> None:
        self.assertEqual(
            schedule.rescale(COCO._replace(evaluation_period=3), 16),
            Schedule(16, 0.02, 90_000, (60_000, 80_000), 500, 2, 2500),
        )

    def test_same_number_of_images_changes_nothing(self) -> None:
        self.assertEqual(schedule.rescale(COCO, 8), COCO)

    @parameterized.parameters(1, 2, 3, 7, 64)
    def test_total_images_and_rate_per_image_are_kept(self, images: int) -> None:
        new = schedule.rescale(COCO, images)
        self.assertAlmostEqual(new.iterations * images / (180_000 * 8), 1, places=3)
        self.assertAlmostEqual(new.learning_rate / images, 0.01 / 8)
        schedule.check(COCO, new)

    def test_periods_are_never_rounded_to_zero(self) -> None:
        self.assertEqual(schedule.rescale(COCO._replace(warmup_iterations=1), 64).steps[0], 15_000)
        few = schedule.rescale(COCO._replace(warmup_iterations=1), 64)
        self.assertEqual(few.warmup_iterations, 1)

    @parameterized.parameters(0, -4)
    def test_rejects_a_batch_without_images(self, images: int) -> None:
        with self.assertRaisesRegex(UserError, f"--images-per-batch is {images}; "):
            schedule.rescale(COCO, images)
        with self.assertRaisesRegex(UserError, f"SOLVER.IMS_PER_BATCH is {images}; "):
            schedule.check_range(COCO._replace(images_per_batch=images))

    def test_rejects_a_schedule_without_iterations(self) -> None:
        schedule.check_range(COCO)
        with self.assertRaisesRegex(UserError, "SOLVER.MAX_ITER is 0; it must be 1 or more"):
            schedule.check_range(COCO._replace(iterations=0))

    @parameterized.parameters(0.0, -1.0, float("inf"), float("nan"))
    def test_rejects_a_learning_rate_that_cannot_train(self, rate: float) -> None:
        with self.assertRaisesRegex(UserError, f"SOLVER.BASE_LR is {rate}; it must be above 0"):
            schedule.check_range(COCO._replace(learning_rate=rate))

    def test_rejects_a_negative_warmup(self) -> None:
        schedule.check_range(COCO._replace(warmup_iterations=0))
        with self.assertRaisesRegex(UserError, "SOLVER.WARMUP_ITERS is -1; it must be 0 or more"):
            schedule.check_range(COCO._replace(warmup_iterations=-1))

    def test_rejects_a_checkpoint_period_of_0(self) -> None:
        with self.assertRaisesRegex(UserError, "SOLVER.CHECKPOINT_PERIOD is 0; it must be 1"):
            schedule.check_range(COCO._replace(checkpoint_period=0))

    @parameterized.parameters(
        (
            {"images_per_batch": 4},
            "BASE_LR 0.01 .expected 0.005., SOLVER.MAX_ITER 180000 ",
        ),
        ({"learning_rate": 0.02}, "SOLVER.BASE_LR 0.02 .expected 0.01. does not match"),
        ({"iterations": 100}, "SOLVER.MAX_ITER 100 .expected 180000."),
        ({"steps": (1, 2)}, "SOLVER.STEPS"),
        ({"warmup_iterations": 10}, "SOLVER.WARMUP_ITERS 10 "),
    )
    def test_rejects_a_partly_changed_schedule(
        self, change: dict[str, object], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            schedule.check(COCO, COCO._replace(**change))  # type: ignore[arg-type]

    def test_evaluation_and_checkpoint_periods_may_change(self) -> None:
        schedule.check(COCO, COCO._replace(evaluation_period=10, checkpoint_period=7))

    def test_accepts_a_rounded_learning_rate(self) -> None:
        new = schedule.rescale(COCO, 3)
        schedule.check(COCO, new._replace(learning_rate=0.00375))
        schedule.check(COCO, new._replace(learning_rate=0.00372))
        with self.assertRaises(UserError):
            schedule.check(COCO, new._replace(learning_rate=0.0036))

    def test_table_shows_both_schedules(self) -> None:
        lines = schedule.table(COCO, schedule.rescale(COCO, 4)).splitlines()
        self.assertLen(lines, 2 + 7)
        self.assertEqual(lines[3], "| SOLVER.BASE_LR | 0.01 | 0.005 |")
        self.assertEqual(lines[5], "| SOLVER.STEPS | (120000, 160000) | (240000, 320000) |")


if __name__ == "__main__":
    absltest.main()
