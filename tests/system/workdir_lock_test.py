"""Two runs never use one workdir at once."""

import os
import signal
import socket
import subprocess
import sys
from unittest import mock

from absl.testing import absltest

from jigclu.system.errors import UserError
from jigclu.system.workdir_lock import locked
from tests.folder_case import FolderTestCase

_HOLDER = (
    "import pathlib, sys, time\nfrom jigclu.system.workdir_lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1])):\n  print('locked', flush=True)\n  time.sleep(60)"
)


class WorkdirLockTest(FolderTestCase):
    def test_second_run_is_rejected_with_host_and_process(self) -> None:
        workdir = self.folder / "new" / "run"
        with (
            locked(workdir),
            self.assertRaisesRegex(
                UserError, f"in use by process {os.getpid()} on {socket.gethostname()}: wait"
            ),
            locked(workdir),
        ):
            self.fail("locked twice")
        with locked(workdir):
            pass

    def test_a_killed_run_leaves_no_lock(self) -> None:
        command = [sys.executable, "-c", _HOLDER, str(self.folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            self.assertEqual(holder.stdout.readline(), "locked\n")
            with (
                self.assertRaisesRegex(UserError, f"in use by process {holder.pid} on "),
                locked(self.folder),
            ):
                self.fail("locked twice")
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        with self.assertLogs("absl", "WARNING") as logged, locked(self.folder):
            pass
        self.assertIn(
            f"process {holder.pid} on {socket.gethostname()}, was killed", logged.output[0]
        )

    def test_the_record_of_a_dead_host_is_no_lock(self) -> None:
        (self.folder / ".lock").write_text("process 1 on another-host")
        with locked(self.folder):
            pass
        self.assertEqual((self.folder / ".lock").read_text(), "")

    def test_file_systems_without_locks_are_reported(self) -> None:
        with (
            mock.patch("fcntl.flock", side_effect=OSError(38, "Function not implemented")),
            self.assertLogs("absl", "WARNING") as logged,
            locked(self.folder),
        ):
            pass
        self.assertIn("on a file system without locks", logged.output[0])

    def test_a_workdir_that_is_a_file_is_reported(self) -> None:
        (self.folder / "file").touch()
        with (
            self.assertRaisesRegex(UserError, "file.* cannot be written"),
            locked(self.folder / "file"),
        ):
            self.fail("locked a file")


if __name__ == "__main__":
    absltest.main()
