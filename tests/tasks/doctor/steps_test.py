"""Tests of jigclu.tasks.doctor.steps."""

from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.doctor import steps
from jigclu.tasks.doctor.steps import StepTimes
from jigclu.tasks.finetune import FinetuneTask
from jigclu.training.settings import with_settings
from tests.small_tasks import FINETUNING, PRETRAINING, TaskTestCase


def failing_step(task: Any, device: torch.device) -> tuple[StepTimes, None]:
    """Runs out of memory with more than one image at once."""
    if (task.micro_batch_size or task.batch_size) > 1:
        raise torch.OutOfMemoryError
    return StepTimes(1.0, 0.0, 1.0), None


class StepsTest(TaskTestCase):
    def test_finds_the_largest_micro_batch_that_fits(self) -> None:
        with (
            mock.patch.object(steps, "measure_steps", failing_step),
            PRETRAINING.process(self.folder, "") as process,
        ):
            found = next(steps.check_pretraining_steps(PRETRAINING, process))
        self.assertEqual(found.level, "error")
        self.assertIn("4 images do not fit", found.text)
        self.assertIn("pretrain.micro_batch_size = 1,", found.remedy)

    def test_reading_that_is_too_slow(self) -> None:
        slow = steps.report_times(PRETRAINING, StepTimes(2.0, 1.0, 1.5))
        self.assertEqual(slow.level, "warning")
        self.assertIn("2.0 images/s; reading alone 2.7; steps wait for batches 50.0%", slow.text)
        quick = steps.report_times(PRETRAINING, StepTimes(2.0, 0.1, 0.5))
        self.assertEqual(quick.level, "ok")

    def test_a_batch_of_fine_tuning_that_does_not_fit(self) -> None:
        with mock.patch.object(FinetuneTask, "run", side_effect=torch.OutOfMemoryError):
            (found,) = steps.check_steps(FINETUNING)
        self.assertEqual(found.level, "error")
        self.assertIn("use a smaller batch_size", found.remedy)

    def test_fine_tuning_keeps_its_duration_and_leaves_nothing(self) -> None:
        task = with_settings(FINETUNING, epochs=50)
        record = {"images_per_second": 4.0, "data_wait_fraction": 0.5, "peak_memory_gb": 1.0}
        with mock.patch.object(steps, "measure_first_steps", return_value=record):
            found = {finding.name: finding for finding in steps.check_steps(task)}
        self.assertEqual(found["speed"].level, "warning")
        # 50 epochs of 2 steps of 8 images, of which 4 take a second.
        hours = 50 * 2 * 8 / 4 / 3600
        self.assertEqual(found["duration"].text, f"100 steps take about {hours:.1f} hours")

    def test_cached_features_are_not_measured(self) -> None:
        task = mock.Mock(cache="a cache")
        (found,) = steps.check_steps(task)
        self.assertIn("cached features", found.text)
        task.run.assert_not_called()


if __name__ == "__main__":
    absltest.main()
