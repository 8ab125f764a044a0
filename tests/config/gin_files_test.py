"""Gin files and the files that they include, and which of them binds what."""

import sys
from unittest import mock

from absl.testing import absltest

from jigclu import config
from jigclu.config import gin_files
from jigclu.system.errors import UserError
from tests.config.config_test_case import DEMO, ConfigTestCase


class ParseFileTest(ConfigTestCase):
    def test_neighbor_is_included_by_relative_path(self) -> None:
        (self.folder / "mine").mkdir()
        self.file(f"include '{DEMO}'\npretrain.seed = 5\n", "mine/base.gin")
        run = self.file("include 'base.gin'\nschedule.epochs = 9\n", "mine/run.gin")
        task = config.load([run], []).task
        self.assertEqual((task.seed, task.schedule.epochs), (5, 9))  # type: ignore[attr-defined]

    def test_neighbor_of_a_nested_file_is_included(self) -> None:
        (self.folder / "a" / "b").mkdir(parents=True)
        self.file(f"include '{DEMO}'\n", "a/b/inner.gin")
        self.file("include 'inner.gin'\npretrain.seed = 5\n", "a/b/middle.gin")
        run = self.file("include 'b/middle.gin'\n", "a/run.gin")
        self.assertEqual(config.load([run], []).task.seed, 5)  # type: ignore[attr-defined]

    def test_byte_order_mark_is_ignored(self) -> None:
        run = self.file(b"\xef\xbb\xbfinclude 'gin/demo.gin'\r\npretrain.seed = 5\r\n")
        self.assertEqual(config.load([run], []).task.seed, 5)  # type: ignore[attr-defined]

    def test_statements_take_effect_in_the_order_of_lines(self) -> None:
        self.file("pretrain.seed = 5\nschedule.epochs = 9\n", "other.gin")
        run = self.file(
            f"include '{DEMO}'\npretrain.seed = 4\ninclude 'other.gin'\nschedule.epochs = 8\n"
        )
        task = config.load([run], []).task
        self.assertEqual((task.seed, task.schedule.epochs), (5, 8))  # type: ignore[attr-defined]

    def test_blocks_and_lines_after_an_include_keep_their_line_numbers(self) -> None:
        run = self.file(f"pretrain:\n  seed = 5\ninclude '{DEMO}'\n\npretrain.sed = 5\n")
        self.assertStartsWith(self.rejected(files=(run,)), f"{run}, line 5: ")

    def test_layers_name_their_files_and_bindings(self) -> None:
        self.file("evaluation/loading.workers = 0\nSEED = 3\n", "base.gin")
        run = self.file("include 'base.gin'\njigclu.pretrain.seed = %SEED\n")
        base, last = gin_files.parse_file(run, [])
        self.assertEqual(base.place, str(self.folder / "base.gin"))
        self.assertEqual(base.bindings, {"evaluation/loading.workers": "0", "SEED": "3"})
        self.assertEqual(last, gin_files.Layer(run, {"pretrain.seed": "%SEED"}))

    def test_rejects_files_that_include_each_other(self) -> None:
        first = self.file("include 'b.gin'\n", "a.gin")
        second = self.file("include 'a.gin'\n", "b.gin")
        self.assertEqual(
            self.rejected(files=(first,)), f"{second} includes {first}, which includes it in turn"
        )

    def test_missing_neighbor_is_reported_with_the_line_that_includes_it(self) -> None:
        run = self.file("\ninclude 'bse.gin'\n")
        self.assertStartsWith(
            self.rejected(files=(run,)), f"{run}, line 2: gin file bse.gin does not exist"
        )

    def test_imports_run_only_if_they_are_allowed(self) -> None:
        marker = self.folder / "ran"
        module = self.folder / "imported_by_a_config.py"
        module.write_text(f"open({str(marker)!r}, 'w')")
        self.file("import imported_by_a_config\n", "stranger.gin")
        run = self.file(f"include 'stranger.gin'\ninclude '{DEMO}'\n")
        self.enter_context(mock.patch.object(sys, "path", [*sys.path, str(self.folder)]))
        self.addCleanup(sys.modules.pop, "imported_by_a_config", None)
        self.assertEqual(
            self.rejected(files=(run,)),
            f"{self.folder}/stranger.gin: `import imported_by_a_config` lets the configuration "
            "run any Python code: if you trust it, pass --allow_imports",
        )
        self.assertFalse(marker.exists())
        config.load([run], [], allow_imports=True)
        self.assertTrue(marker.exists())

    def test_other_functions_cannot_be_registered(self) -> None:
        lines = "from __gin__ import dynamic_registration\nimport os\npretrain.seed = @os.getpid()"
        for allowed in (False, True):
            with self.assertRaisesRegex(UserError, "dynamic_registration` is not supported"):
                config.load([self.file(lines)], [], allow_imports=allowed)

    def test_functions_that_are_not_registered_are_unknown(self) -> None:
        run = self.file(f"include '{DEMO}'\npretrain.seed = @os.getpid()\n")
        self.assertIn("No configurable matching", self.rejected(files=(run,)))


class ShippedFilesTest(absltest.TestCase):
    def test_first_comment_describes_the_file(self) -> None:
        self.assertIn(DEMO, gin_files.shipped_files())
        for file in gin_files.shipped_files():
            self.assertRegex(gin_files.first_comment(file), r"^\w.*[^#]$")


if __name__ == "__main__":
    absltest.main()
