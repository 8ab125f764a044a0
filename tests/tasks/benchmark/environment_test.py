"""Tests of jigclu.tasks.benchmark.environment."""

import subprocess
from unittest import mock

import PIL
import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import environment


class EnvironmentTest(absltest.TestCase):
    def test_names_the_machine_and_the_versions(self) -> None:
        found = environment.describe_environment(torch.device("cpu"))
        self.assertEqual(found["device"], "cpu")
        self.assertEqual(found["torch"], torch.__version__)
        self.assertEqual(found["pillow"], PIL.__version__)
        self.assertNotEmpty(found["processor"])
        self.assertNotIn("driver", found)

    def test_names_the_gpu_and_its_driver(self) -> None:
        properties = mock.Mock(major=9, minor=0, total_memory=85e9)
        answer = subprocess.CompletedProcess([], 0, "580.1\n580.1\n", "")
        with (
            mock.patch.multiple(
                torch.cuda,
                get_device_name=lambda _: "H100",
                get_device_properties=lambda _: properties,
                device_count=lambda: 2,
            ),
            mock.patch.object(subprocess, "run", return_value=answer),
        ):
            found = environment.describe_environment(torch.device("cuda", 0))
        self.assertEqual(found["device"], "H100")
        self.assertEqual(found["driver"], "580.1")
        self.assertEqual(found["compute capability"], "9.0")
        self.assertEqual(found["device memory"], "85.0 GB")
        self.assertEqual(found["devices"], "2")

    def test_a_driver_that_does_not_answer_is_unknown(self) -> None:
        with mock.patch.object(subprocess, "run", side_effect=FileNotFoundError):
            self.assertIn("unknown", environment._driver())

    def test_a_missing_package_is_named(self) -> None:
        self.assertEqual(environment._version("no-such-package"), "not installed")


if __name__ == "__main__":
    absltest.main()
