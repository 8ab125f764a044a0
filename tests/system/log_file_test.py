"""Tests of jigclu.system.log_file."""

import io
import logging
import warnings
from unittest import mock

from absl import logging as absl_logging
from absl.testing import absltest

from jigclu.system import log_file, progress
from jigclu.system.errors import UserError
from jigclu.system.log_file import log_to, own_messages
from tests.folder_case import FolderTestCase
from tests.terminal import Terminal, screen


class LogFileTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "run/train.log"

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def test_messages_are_kept_and_live_lines_are_not(self) -> None:
        console = progress.Console(Terminal())
        with mock.patch.object(progress, "CONSOLE", console), log_to(self.path):
            console.set_line("step 1 of 9")
            console.message("100 % of \udcff.png")
            logging.getLogger("other").warning("noise of a library")
        self.assertEqual(self.lines()[0], "100 % of \\udcff.png")
        self.assertRegex(self.lines()[1], r"^W\d{4} .*\] noise of a library$")
        self.assertLen(self.lines(), 2)

    def test_the_terminal_shows_only_messages_of_this_project(self) -> None:
        stream = Terminal()
        console = mock.patch.object(progress, "CONSOLE", progress.Console(stream))
        root, usual = logging.getLogger(), absl_logging.get_absl_handler()
        root.addHandler(usual)
        self.addCleanup(root.removeHandler, usual)
        with console, own_messages(), log_to(self.path), mock.patch("sys.stderr", stream):
            progress.CONSOLE.set_line("step 1 of 9")
            absl_logging.warning("skipped %s", "a.png")
            logging.getLogger("other").warning("noise of a library")
            warnings.warn("noise of Python", stacklevel=1)
        self.assertEqual(screen(stream.getvalue()), ["warning: skipped a.png", "step 1 of 9"])
        first, *others = self.lines()
        self.assertEqual(first, "warning: skipped a.png")
        self.assertRegex(others[0], r"^W\d{4} .*\] noise of a library$")
        self.assertRegex(others[1], "UserWarning: noise of Python")
        self.assertNotIn("skipped", "".join(others))
        self.assertIn(usual, root.handlers)
        with self.assertWarns(UserWarning):
            warnings.warn("as before", stacklevel=1)

    def test_without_a_console_the_file_has_messages_of_this_project(self) -> None:
        with log_to(self.path):
            absl_logging.warning("skipped %s", "a.png")
        self.assertRegex(self.lines()[0], r"^W\d{4} .*\] skipped a.png$")

    def test_later_starts_append(self) -> None:
        console = progress.Console(io.StringIO())
        with mock.patch.object(progress, "CONSOLE", console):
            for number in range(2):
                with log_to(self.path):
                    console.message(f"start {number}")
            console.message("after the run")
        self.assertEqual(self.lines(), ["start 0", "start 1"])

    def test_the_error_that_ends_a_run_is_its_last_line(self) -> None:
        with self.assertRaises(UserError), log_to(self.path):
            raise UserError("out of luck")
        self.assertEqual(self.lines(), ["error: out of luck"])

    def test_a_full_disk_does_not_stop_the_run(self) -> None:
        console = progress.Console(io.StringIO())
        with mock.patch.object(progress, "CONSOLE", console), log_to(self.path):
            full = mock.patch.object(log_file._Handler, "flush", side_effect=OSError(28, "full"))
            with full, mock.patch("sys.stderr", io.StringIO()) as printed:
                console.message("lost")
                logging.getLogger("other").warning("lost, too")
                for handler in logging.getLogger("jigclu.console").handlers:
                    handler.close()
            self.assertNotIn("Traceback", printed.getvalue())

    def test_a_folder_that_cannot_be_written_is_reported(self) -> None:
        (self.folder / "run").write_text("a file")
        with self.assertRaisesRegex(UserError, "train.log cannot be written"), log_to(self.path):
            pass


if __name__ == "__main__":
    absltest.main()
