"""Tests of jigclu.tasks.doctor.machine."""

import dataclasses
import shutil
from typing import Any
from unittest import mock

from absl.testing import absltest

from jigclu.tasks.doctor import machine
from jigclu.tasks.doctor.finding import Finding
from jigclu.training.settings import with_settings
from tests.small_tasks import LOADING, PRETRAINING, TaskTestCase


class MachineTest(TaskTestCase):
    def findings(self, task: Any) -> dict[str, Finding]:
        with task.process(self.folder / "run", "") as process:
            return {finding.name: finding for finding in machine.check_machine(task, process)}

    def test_resources_that_do_not_suffice(self) -> None:
        usage = shutil.disk_usage("/")._replace(free=1000)
        task = dataclasses.replace(PRETRAINING, loading=dataclasses.replace(LOADING, workers=2))
        with (
            mock.patch.object(machine.shutil, "disk_usage", return_value=usage),
            mock.patch.object(machine.resource, "getrlimit", return_value=(64, 4096)),
        ):
            found = self.findings(task)
        self.assertIn("ulimit -n 256", found["open files"].remedy)
        self.assertIn("--shm-size", found["shared memory"].remedy)
        self.assertIn("room for 0 MB", found["disk"].text)
        for name in ("open files", "shared memory", "disk"):
            self.assertEqual(found[name].level, "error")

    def test_slow_precision_is_a_warning(self) -> None:
        with mock.patch.object(machine.machine, "precision_slowdown", return_value=12.0):
            task = with_settings(PRETRAINING, precision="bfloat16")
            found = self.findings(task)["precision"]
        self.assertEqual(found.level, "warning")
        self.assertIn("12.0 times as long as in float32", found.remedy)

    def test_a_compiler_that_fails_is_an_error(self) -> None:
        task = with_settings(PRETRAINING, compile=True)
        problem = "there is no C++ compiler"
        with mock.patch.object(machine, "compiler_problem", return_value=problem):
            found = self.findings(task)["compile"]
        self.assertEqual(found.level, "error")
        self.assertIn("there is no C++ compiler", found.text)


if __name__ == "__main__":
    absltest.main()
