"""Tests of jigclu.tasks.doctor.examine: all findings of a task."""

from typing import Any
from unittest import mock

from absl.testing import absltest

from jigclu.tasks import short_run
from jigclu.tasks.doctor import steps
from jigclu.tasks.doctor.examine import examine
from jigclu.tasks.doctor.finding import Finding
from jigclu.training.settings import with_settings
from tests.small_tasks import FINETUNING, KNN, PRETRAINING, TaskTestCase

MACHINE = ["devices", "cores", "precision", "compile", "disk", "open files", "shared memory"]
STEPS = ["batch", "speed", "duration"]


class ExamineTest(TaskTestCase):
    def findings(self, task: Any) -> dict[str, Finding]:
        with mock.patch.object(steps, "_STEPS", 3), mock.patch.object(short_run, "_STEPS", 3):
            found = {finding.name: finding for finding in examine(task, self.folder / "run")}
        self.assertFalse((self.folder / "run").exists())
        return found

    def test_pretraining(self) -> None:
        found = self.findings(with_settings(PRETRAINING, evaluators=(KNN,), workers=0))
        images = ["source", "evaluators.bank", "evaluators.queries"]
        levels = {name: finding.level for name, finding in found.items()}
        self.assertEqual(levels, dict.fromkeys([*MACHINE, *images, *STEPS], "ok"))
        self.assertIn("all 14 images are readable", found["source"].text)
        self.assertIn("6 steps take about 0.0 hours", found["duration"].text)

    def test_fine_tuning(self) -> None:
        found = self.findings(FINETUNING)
        levels = {name: finding.level for name, finding in found.items()}
        self.assertEqual(levels, dict.fromkeys([*MACHINE, "source", "val", *STEPS], "ok"))
        self.assertIn("8 images fit; peak memory", found["batch"].text)
        self.assertIn("4 steps take about 0.0 hours", found["duration"].text)


if __name__ == "__main__":
    absltest.main()
