"""Tests of jigclu.system.environment."""

import json
import sys
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system import environment
from tests.folder_case import FolderTestCase


class EnvironmentTest(FolderTestCase):
    def test_every_start_is_kept(self) -> None:
        path = self.folder / "environment.json"
        command = ["python", "-m", "jigclu.launch", "--gin_file=a.gin"]
        with mock.patch.object(sys, "orig_argv", command):
            environment.add_environment(path, 1)
            environment.add_environment(path, 2)
        first, second = json.loads(path.read_text())
        self.assertEqual(first["command"], [sys.executable, *command[1:]])
        self.assertEqual((first["processes"], second["processes"]), (1, 2))
        self.assertStartsWith(torch.__version__, first["versions"]["torch"])

    def test_a_damaged_file_is_replaced(self) -> None:
        path = self.folder / "environment.json"
        for text in ("[{", '"text"'):
            path.write_text(text)
            environment.add_environment(path, 1)
            self.assertLen(json.loads(path.read_text()), 1)

    def test_processor_is_the_model_of_the_first_core(self) -> None:
        text = "processor\t: 0\nmodel name\t: AMD EPYC: 7\n\nmodel name\t: other\n"
        with mock.patch.object(environment, "Path") as path:
            path.return_value.exists.return_value = True
            path.return_value.read_text.return_value = text
            self.assertEqual(environment.processor(), "AMD EPYC: 7")
            path.return_value.exists.return_value = False
            self.assertNotEmpty(environment.processor())

    def test_without_git_there_is_no_commit(self) -> None:
        with mock.patch.object(environment.subprocess, "run", side_effect=FileNotFoundError):
            self.assertIsNone(environment.describe(1)["commit"])
        with mock.patch.object(environment, "_ROOT", self.folder):
            self.assertIsNone(environment.describe(1)["commit"])


if __name__ == "__main__":
    absltest.main()
