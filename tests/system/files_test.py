"""Tests of jigclu.system.files."""

import hashlib
import os
from typing import IO
from unittest import mock

from absl.testing import absltest, parameterized

from jigclu.system import files
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase


class FilesTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "file.txt"

    def _write(self, data: bytes) -> None:
        files.write_atomically(self.path, lambda file: file.write(data))

    def test_write_replaces_an_older_file(self) -> None:
        self._write(b"old")
        self._write(b"new")
        self.assertEqual(self.path.read_bytes(), b"new")
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_interrupted_write_leaves_the_old_file(self) -> None:
        self._write(b"old")
        with (
            mock.patch.object(os, "replace", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self._write(b"new")
        self.assertEqual(self.path.read_bytes(), b"old")
        self.assertEqual(list(self.folder.iterdir()), [self.path])

    def test_data_are_on_disk_before_the_file_gets_its_name(self) -> None:
        calls = mock.Mock()
        with (
            mock.patch.object(os, "fsync", side_effect=lambda _: calls("fsync")),
            mock.patch.object(os, "replace", side_effect=lambda *_: calls("replace")),
        ):
            self._write(b"new")
        self.assertEqual([call.args[0] for call in calls.mock_calls], ["fsync", "replace", "fsync"])

    def test_leftovers_are_removed_but_not_those_of_a_running_write(self) -> None:
        for name in ("file.1.tmp", "file.txt", "other.2.tmp"):
            (self.folder / name).touch()
        seen: list[str] = []

        def write(file: IO[bytes]) -> None:
            files.remove_leftovers(self.folder, "fi*")
            seen.extend(path.name for path in self.folder.iterdir())

        files.write_atomically(self.folder / "file.new", write)
        (running,) = set(seen) - {"file.txt", "other.2.tmp"}
        self.assertRegex(running, r"^file\.[0-9a-f]{32}\.tmp$")
        self.assertNotIn(running, [path.name for path in self.folder.iterdir()])

    def test_without_locks_no_leftover_is_removed(self) -> None:
        (self.folder / "file.1.tmp").touch()
        with mock.patch("fcntl.flock", side_effect=OSError(38, "Function not implemented")):
            files.remove_leftovers(self.folder, "*")
            self._write(b"new")
        self.assertTrue((self.folder / "file.1.tmp").exists())
        files.remove_leftovers(self.folder / "missing", "*")

    def test_write_file_creates_folders(self) -> None:
        path = self.folder / "a" / "b" / "c.txt"
        files.write_file(path, b"data")
        self.assertEqual(path.read_bytes(), b"data")

    def test_read_json(self) -> None:
        self.assertEqual(files.read_json(self.folder / "none.json", {"a": 1}), {"a": 1})
        path = self.folder / "values.json"
        path.write_text('{"b": [2, null]}')
        self.assertEqual(files.read_json(path, {"a": 1}), {"b": [2, None]})

    def test_write_file_names_what_it_cannot_write(self) -> None:
        self.path.touch()
        with self.assertRaisesRegex(UserError, r"file\.txt/c\.txt cannot be written"):
            files.write_file(self.path / "c.txt", b"data")

    def test_reasons_why_a_folder_cannot_be_written(self) -> None:
        self.assertIsNone(files.unwritable(self.folder))
        self.assertIsNone(files.unwritable(self.folder / "a" / "b"))
        self.assertFalse((self.folder / "a").exists())
        self.path.touch()
        self.assertEqual(files.unwritable(self.path / "b"), "Not a directory")
        with mock.patch("os.access", return_value=False):
            self.assertEqual(files.unwritable(self.folder / "a"), "Permission denied")

    @parameterized.parameters(0, 3, 2**20, 2**20 + 1)
    def test_sha256_covers_the_whole_file(self, size: int) -> None:
        self.path.write_bytes(b"x" * size)
        self.assertEqual(files.sha256(self.path), hashlib.sha256(b"x" * size).hexdigest())


if __name__ == "__main__":
    absltest.main()
