"""Tests of jigclu.training.checkpoint."""

import os
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.training import checkpoint
from tests.training.checkpoint_contents_test import contents


class SaveAndLoadTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        self.folder = self.workdir / "checkpoints"

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _save(self, step: int, keep_last: int = 1, keep_every: int = 0) -> Path:
        return checkpoint.save(self.workdir, contents(step), step, keep_last, keep_every)

    def _damage(self, step: int) -> Path:
        """Changes a byte of a saved tensor."""
        path = checkpoint.checkpoint_path(self.workdir, step)
        data = bytearray(path.read_bytes())
        data[data.index(torch.full((2,), 0.25).numpy().tobytes())] ^= 1
        path.write_bytes(data)
        return path

    def test_load_returns_savedcontents(self) -> None:
        path = self._save(1234)
        self.assertEqual(path, self.folder / "step_00001234.pt")
        loaded = checkpoint.load(path, "cpu")
        for key, value in contents(1234).items():
            if key in ("parameters", "buffers", "optimizer", "rng"):
                torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
            else:
                self.assertEqual(loaded[key], value)

    def test_keeps_the_last_and_every_nth(self) -> None:
        for step in range(10, 80, 10):
            self._save(step, keep_last=2, keep_every=30)
        self.assertEqual(self._names(), [f"step_{step:08d}.pt" for step in (30, 60, 70)])

    def test_keep_every_0_keeps_only_the_last(self) -> None:
        for step in (0, 10, 20):
            self._save(step)
        self.assertEqual(self._names(), ["step_00000020.pt"])

    def test_never_removes_the_checkpoint_just_written(self) -> None:
        self._save(50)
        self._save(10)
        self.assertEqual(self._names(), ["step_00000010.pt", "step_00000050.pt"])

    def test_removes_temporary_files_of_a_crash_and_nothing_else(self) -> None:
        self.folder.mkdir()
        for name in ("step_00000003.abc.tmp", "mine.tmp", "step_best.pt"):
            (self.folder / name).touch()
        checkpoint.tidy(self.workdir, self._save(5))
        self.assertEqual(self._names(), ["mine.tmp", "step_00000005.pt", "step_best.pt"])

    @parameterized.parameters(
        OSError(28, "No space left on device"), RuntimeError("write failed\nat line 3")
    )
    def test_full_disk_is_reported_in_one_line_and_keeps_older_checkpoints(
        self, error: Exception
    ) -> None:
        self._save(1)
        with (
            mock.patch.object(torch, "save", side_effect=error),
            self.assertRaisesRegex(UserError, r"step_00000002\.pt cannot be written") as raised,
        ):
            self._save(2)
        self.assertNotIn("\n", str(raised.exception))
        self.assertEqual(self._names(), ["step_00000001.pt"])

    def test_crash_before_the_rename_leaves_no_checkpoint(self) -> None:
        self._save(1)
        with (
            mock.patch.object(os, "replace", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self._save(2)
        self.assertEqual(checkpoint.latest(self.workdir), self.folder / "step_00000001.pt")

    def test_rejects_a_workdir_that_cannot_be_written(self) -> None:
        (self.workdir / "checkpoints").touch()
        with self.assertRaisesRegex(UserError, "cannot be written"):
            self._save(1)

    def test_latest_is_the_one_of_most_steps(self) -> None:
        self.assertIsNone(checkpoint.latest(self.workdir))
        for step in (99_999_999, 100_000_000, 5):
            self._save(step, keep_last=9)
        self.assertEqual(checkpoint.latest(self.workdir), self.folder / "step_100000000.pt")

    def test_rejects_missing_and_truncated_files(self) -> None:
        with self.assertRaisesRegex(UserError, r"step_00000011\.pt does not exist"):
            checkpoint.load(self.folder / "step_00000011.pt", "cpu")
        path = self._save(1)
        path.write_bytes(path.read_bytes()[:-1])
        with self.assertRaisesRegex(UserError, r"step_00000001\.pt cannot be read"):
            checkpoint.load(path, "cpu")

    def test_latest_is_the_newest_intact_one(self) -> None:
        for step in (1, 2, 3, 4):
            self._save(step, keep_last=9)
        self._damage(3)
        truncated = checkpoint.checkpoint_path(self.workdir, 4)
        truncated.write_bytes(truncated.read_bytes()[:-100])
        self.assertEqual(
            checkpoint.latest(self.workdir), checkpoint.checkpoint_path(self.workdir, 2)
        )
        self.assertLen(self._names(), 4)

    def test_latest_finds_newer_checkpoints_if_a_run_removes_the_one_it_reads(self) -> None:
        path = self._save(1)

        def remove(path: Path) -> dict[str, Any]:
            peek.side_effect = None
            self._save(2)
            raise UserError("does not exist")

        with mock.patch.object(checkpoint, "peek", side_effect=remove) as peek:
            self.assertEqual(checkpoint.latest(self.workdir), path.with_name("step_00000002.pt"))

    def test_latest_skips_a_checkpoint_whose_step_is_not_that_of_its_name(self) -> None:
        self._save(1)
        torch.save(contents(10**12), checkpoint.checkpoint_path(self.workdir, 2))
        self.assertEqual(
            checkpoint.latest(self.workdir), checkpoint.checkpoint_path(self.workdir, 1)
        )

    def test_a_file_that_was_replaced_is_read_again(self) -> None:
        path = self._save(1)
        good = path.read_bytes()
        self._damage(1)
        with self.assertRaises(UserError):
            checkpoint.latest(self.workdir)
        path.write_bytes(good + b"")
        os.utime(path, ns=(1, 1))
        self.assertEqual(checkpoint.latest(self.workdir), path)

    def test_no_intact_checkpoint_is_an_error_that_names_the_newest(self) -> None:
        for step in (1, 2):
            self._save(step, keep_last=9)
            self._damage(step)
        with self.assertRaisesRegex(
            UserError, r"^checkpoint \S+step_00000002\.pt .*corrupt.*no checkpoint in \S+ is intact"
        ):
            checkpoint.latest(self.workdir)

    def test_corrupt_checkpoints_are_set_aside_once_the_run_starts_from_an_earlier_one(
        self,
    ) -> None:
        for step in (1, 2, 3):
            self._save(step, keep_last=9)
        self._damage(3)
        messages = checkpoint.tidy(self.workdir, checkpoint.checkpoint_path(self.workdir, 2))
        self.assertEqual(
            self._names(), ["step_00000001.pt", "step_00000002.pt", "step_00000003.pt.corrupt"]
        )
        self.assertLen(messages, 1)
        self.assertRegex(messages[0], "^warning: .*checksum.*now step_00000003.pt.corrupt$")
        self._save(3, keep_last=9)
        self._damage(3)
        checkpoint.tidy(self.workdir, checkpoint.checkpoint_path(self.workdir, 2))
        self.assertEqual(
            self._names()[2:], ["step_00000003.pt.corrupt", "step_00000003.pt.corrupt2"]
        )

    def test_newer_checkpoints_are_set_aside_when_a_run_goes_back(self) -> None:
        for step in (99_999_999, 100_000_000):
            self._save(step, keep_last=9)
        (message,) = checkpoint.tidy(
            self.workdir, checkpoint.checkpoint_path(self.workdir, 99_999_999)
        )
        self.assertIn("is newer than resume_from; the file is now step_100000000.pt.aba", message)
        self.assertEqual(self._names(), ["step_100000000.pt.abandoned", "step_99999999.pt"])

    def test_a_start_from_another_folder_changes_nothing(self) -> None:
        other = Path(self.create_tempdir().full_path)
        start = checkpoint.save(other, contents(1), 1, 1, 0)
        self._save(5)
        for path in (start, None):
            self.assertEmpty(checkpoint.tidy(self.workdir, path))
        self.assertEqual(self._names(), ["step_00000005.pt"])

    @parameterized.parameters(
        # 3 saves of 100 bytes; keeps the last, with room for the one before it.
        ((2, 4, 6), 1, 0, 200),
        ((2, 4, 6), 2, 0, 300),
        ((2, 4, 6), 1, 4, 300),
        ((2, 4, 6), 9, 0, 400),
        ((), 1, 0, 0),
    )
    def test_room_for_the_checkpoints_to_come_is_required(
        self, to_come: tuple[int, ...], keep_last: int, keep_every: int, needed: int
    ) -> None:
        def check(free: int) -> None:
            with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=free)):
                checkpoint.check_room(self.workdir, 100, to_come, keep_last, keep_every)

        check(needed)
        if needed:
            with self.assertRaisesRegex(UserError, "need .* each: free some disk space"):
                check(needed - 1)

    def test_checkpoints_that_will_be_removed_count_as_room(self) -> None:
        size = self._save(1).stat().st_size
        with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=size)):
            checkpoint.check_room(self.workdir, size, (2, 3), keep_last=1, keep_every=0)

    def test_the_reason_of_the_system_is_reported_and_not_that_of_torch(self) -> None:
        def full(file: IO[bytes]) -> None:
            raise OSError(28, "No space left on device")

        with (
            mock.patch.object(os, "fsync", side_effect=full),
            self.assertRaisesRegex(UserError, "cannot be written: No space left on device; free"),
        ):
            self._save(1)

    def test_peek_reads_plain_values(self) -> None:
        peeked = checkpoint.peek(self._save(7))
        for key in ("step", "config", "settings", "versions", "scores", "data", "machine"):
            self.assertEqual(peeked[key], contents()[key])


if __name__ == "__main__":
    absltest.main()
