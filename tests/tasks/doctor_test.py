"""Tests of jigclu.tasks.doctor."""

import dataclasses
import shutil
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.data.decode import UnreadableImageError
from jigclu.data.procedural import ProceduralImages
from jigclu.tasks import doctor
from jigclu.tasks.doctor import Finding, StepTimes
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.small_tasks import KNN, LOADING, PRETRAINING, TaskTestCase


class Damaged(ProceduralImages):
    """Images of which numbers 3 and 4 are unreadable."""

    def read(self, index: int, *reduction: Any) -> torch.Tensor:
        if index in (3, 4):
            raise UnreadableImageError("truncated")
        return super().read(index, *reduction)


DAMAGED = Damaged(images=8, size=32, seed=0, split="train")


def check_damaged() -> tuple[str, list[str]]:
    """Returns the finding's text and details."""
    finding = doctor.check_images("source", DAMAGED, 60.0, tolerated=0.25)
    return finding.text, list(finding.details)


def failing_step(task: Any, device: torch.device) -> tuple[StepTimes, None]:
    """Runs out of memory with more than one image at once."""
    if (task.micro_batch_size or task.batch_size) > 1:
        raise torch.OutOfMemoryError
    return StepTimes(1.0, 0.0, 1.0), None


class DoctorTest(TaskTestCase):
    def examine(self, task: Any) -> dict[str, Finding]:
        return {finding.name: finding for finding in doctor.examine(task, self.folder / "run")}

    def test_examines_pretraining_and_leaves_nothing(self) -> None:
        task = with_settings(PRETRAINING, evaluators=(KNN,), workers=0)
        found = self.examine(task)
        levels = {name: finding.level for name, finding in found.items()}
        self.assertEqual(
            levels,
            dict.fromkeys(
                [
                    *("devices", "cores", "precision", "compile", "disk", "open files"),
                    *("shared memory", "source", "evaluators.bank", "evaluators.queries"),
                    *("batch", "speed", "duration"),
                ],
                "ok",
            ),
        )
        self.assertIn("all 14 images are readable", found["source"].text)
        self.assertIn("6 steps take about 0.0 hours", found["duration"].text)
        self.assertFalse((self.folder / "run").exists())

    def test_every_unreadable_image_is_found_on_any_number_of_ranks(self) -> None:
        alone = doctor.check_images("source", DAMAGED, 60.0, tolerated=0.25)
        self.assertEqual(alone.level, "warning")
        self.assertEqual(doctor.check_images("source", DAMAGED, 60.0, 0.2).level, "error")
        self.assertIn("2 of 8 images are unreadable", alone.text)
        self.assertEqual([line.split(" (")[1] for line in alone.details], ["truncated)"] * 2)
        for text, details in run_on_ranks(check_damaged, 2):
            self.assertIn("2 of 8 images are unreadable", text)
            self.assertEqual(details, list(alone.details))

    def test_finds_the_largest_micro_batch_that_fits(self) -> None:
        with mock.patch.object(doctor, "measure_steps", failing_step):
            found = self.examine(PRETRAINING)["batch"]
        self.assertEqual(found.level, "error")
        self.assertIn("4 images do not fit", found.text)
        self.assertIn("pretrain.micro_batch_size = 1,", found.remedy)

    def test_reading_that_is_too_slow(self) -> None:
        slow = doctor.report_times(PRETRAINING, StepTimes(2.0, 1.0, 1.5))
        self.assertEqual(slow.level, "warning")
        self.assertIn("2.0 images/s; reading alone 2.7; steps wait for batches 50%", slow.text)
        quick = doctor.report_times(PRETRAINING, StepTimes(2.0, 0.1, 0.5))
        self.assertEqual(quick.level, "ok")

    def test_resources_that_do_not_suffice(self) -> None:
        usage = shutil.disk_usage("/")._replace(free=1000)
        task = dataclasses.replace(PRETRAINING, loading=dataclasses.replace(LOADING, workers=2))
        with (
            mock.patch.object(doctor.shutil, "disk_usage", return_value=usage),
            mock.patch.object(doctor.resource, "getrlimit", return_value=(64, 4096)),
            mock.patch.object(doctor, "check_images", mock.Mock()),
            mock.patch.object(doctor, "measure_steps", failing_step),
        ):
            found = self.examine(task)
        self.assertIn("ulimit -n 256", found["open files"].remedy)
        self.assertIn("--shm-size", found["shared memory"].remedy)
        self.assertIn("room for 0 MB", found["disk"].text)
        for name in ("open files", "shared memory", "disk"):
            self.assertEqual(found[name].level, "error")

    def test_slow_precision_is_a_warning(self) -> None:
        with mock.patch.object(doctor.machine, "precision_slowdown", return_value=12.0):
            task = with_settings(PRETRAINING, precision="bfloat16")
            with mock.patch.object(doctor, "measure_steps", failing_step):
                found = self.examine(task)["precision"]
        self.assertEqual(found.level, "warning")
        self.assertIn("12.0 times as long as in float32", found.remedy)

    def test_a_compiler_that_fails_is_an_error(self) -> None:
        task = with_settings(PRETRAINING, compile=True)
        with (
            mock.patch.object(doctor, "compiler_problem", return_value="there is no C++ compiler"),
            mock.patch.object(doctor, "measure_steps", failing_step),
        ):
            found = self.examine(task)["compile"]
        self.assertEqual(found.level, "error")
        self.assertIn("there is no C++ compiler", found.text)


if __name__ == "__main__":
    absltest.main()
