"""Tests of jigclu.system.log_file."""

import io
import logging
from unittest import mock

from absl.testing import absltest

from jigclu.system import log_file, progress
from jigclu.system.errors import UserError
from jigclu.system.log_file import log_to
from tests.folder_case import FolderTestCase
from tests.terminal import Terminal


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
