"""Tests of jigclu.system.checkpoint."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.system import checkpoint
from jigclu.system.errors import UserError


def _contents(step: int = 7) -> dict[str, Any]:
    return {
        "step": step,
        "parameters": {"encoder.conv1.weight": torch.arange(6.0).reshape(2, 3)},
        "buffers": {"encoder.bn1.running_mean": torch.tensor([1.5, -2.0])},
        "optimizer": {"encoder.conv1.weight": torch.full((2, 3), 0.25)},
        "rng": {"cpu": torch.get_rng_state()},
        "config": "train.batch_size = 4\n",
        "versions": {"torch": "2", "jigclu": "0", "torchvision": "0"},
        "scores": [(0, {"knn_accuracy": 0.25})],
        "data": "ab12",
    }


class SaveAndLoadTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path)
        self.folder = self.workdir / "checkpoints"

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def _save(self, step: int, keep_last: int = 1, keep_every: int = 0) -> Path:
        return checkpoint.save(self.workdir, _contents(step), step, keep_last, keep_every)

    def test_gives_back_what_was_saved(self) -> None:
        path = self._save(1234)
        self.assertEqual(path, self.folder / "step_00001234.pt")
        loaded = checkpoint.load(path, "cpu")
        for key, value in _contents(1234).items():
            if key in ("step", "config", "versions", "scores", "data"):
                self.assertEqual(loaded[key], value)
            else:
                torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)

    def test_keeps_the_last_and_every_nth(self) -> None:
        for step in range(10, 80, 10):
            self._save(step, keep_last=2, keep_every=30)
        self.assertEqual(self._names(), [f"step_{step:08d}.pt" for step in (30, 60, 70)])

    def test_zero_keeps_no_nth(self) -> None:
        for step in (0, 10, 20):
            self._save(step)
        self.assertEqual(self._names(), ["step_00000020.pt"])

    def test_never_removes_the_one_it_wrote(self) -> None:
        self._save(50)
        self._save(10)
        self.assertEqual(self._names(), ["step_00000010.pt", "step_00000050.pt"])

    def test_removes_leftovers_of_a_crash_and_nothing_else(self) -> None:
        self.folder.mkdir()
        for name in ("step_00000003.abc.tmp", "mine.tmp", "step_best.pt"):
            (self.folder / name).touch()
        self._save(5)
        self.assertEqual(self._names(), ["mine.tmp", "step_00000005.pt", "step_best.pt"])

    @parameterized.parameters((0, 0), (1, -1))
    def test_refuses_to_keep_none(self, keep_last: int, keep_every: int) -> None:
        with self.assertRaisesRegex(UserError, f"keep_last is {keep_last}"):
            self._save(1, keep_last, keep_every)

    @parameterized.parameters(
        OSError(28, "No space left on device"), RuntimeError("write failed\nat line 3")
    )
    def test_full_disk_is_one_line_and_leaves_the_older_ones(self, error: Exception) -> None:
        self._save(1)
        with (
            mock.patch.object(torch, "save", side_effect=error),
            self.assertRaisesRegex(UserError, r"step_00000002\.pt cannot be written") as raised,
        ):
            self._save(2)
        self.assertNotIn("\n", str(raised.exception))
        self.assertEqual(self._names(), ["step_00000001.pt"])

    def test_crash_before_the_rename_leaves_no_checkpoint_of_that_name(self) -> None:
        self._save(1)
        with (
            mock.patch.object(os, "replace", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self._save(2)
        self.assertEqual(checkpoint.latest(self.workdir), self.folder / "step_00000001.pt")

    def test_is_on_the_disk_before_it_has_its_name(self) -> None:
        calls = mock.Mock()
        with (
            mock.patch.object(os, "fsync", side_effect=lambda _: calls("fsync")),
            mock.patch.object(os, "replace", side_effect=lambda *_: calls("replace")),
        ):
            self._save(1)
        self.assertEqual([call.args[0] for call in calls.mock_calls], ["fsync", "replace", "fsync"])

    def test_workdir_that_is_a_file(self) -> None:
        (self.workdir / "checkpoints").touch()
        with self.assertRaisesRegex(UserError, "cannot be written"):
            self._save(1)

    def test_latest_goes_by_number(self) -> None:
        self.assertIsNone(checkpoint.latest(self.workdir))
        for step in (99_999_999, 100_000_000, 5):
            self._save(step, keep_last=9)
        self.assertEqual(checkpoint.latest(self.workdir), self.folder / "step_100000000.pt")

    @parameterized.parameters(0, 3, 2**20, 2**20 + 1)
    def test_sha256_is_of_the_whole_file(self, size: int) -> None:
        path = Path(self.create_tempdir()) / "file"
        path.write_bytes(b"x" * size)
        self.assertEqual(checkpoint.sha256(path), hashlib.sha256(b"x" * size).hexdigest())

    def test_missing_file_names_it_and_what_there_is(self) -> None:
        self._save(10)
        message = r"step_00000011\.pt does not exist; .*step_00000010\.pt"
        with self.assertRaisesRegex(UserError, message):
            checkpoint.load(self.folder / "step_00000011.pt", "cpu")
        with self.assertRaisesRegex(UserError, "nor does the folder"):
            checkpoint.load(self.workdir / "no" / "step_1.pt", "cpu")

    @parameterized.parameters(0, 1, 100, 1000, -1)
    def test_truncated_file(self, size: int) -> None:
        path = self._save(1)
        path.write_bytes(path.read_bytes()[:size])
        with self.assertRaisesRegex(UserError, r"step_00000001\.pt cannot be read"):
            checkpoint.load(path, "cpu")

    def test_a_byte_that_changed_on_the_disk(self) -> None:
        path = self._save(1)
        data = bytearray(path.read_bytes())
        data[data.index(torch.arange(3.0).numpy().tobytes())] ^= 1
        path.write_bytes(data)
        with self.assertRaisesRegex(UserError, r"step_00000001\.pt cannot be read: it is damaged"):
            checkpoint.load(path, "cpu")

    def test_file_that_would_run_code(self) -> None:
        path = self.workdir / "evil.pt"
        torch.save({"step": re.compile("x")}, path)
        with self.assertRaisesRegex(UserError, "more than plain values"):
            checkpoint.load(path, "cpu")

    def test_not_of_this_project(self) -> None:
        path = self.workdir / "other.pt"
        torch.save({"step": 1, "parameters": {}, "buffers": {}, "config": ""}, path)
        with self.assertRaisesRegex(UserError, "lacks optimizer, rng, versions"):
            checkpoint.load(path, "cpu")
        torch.save([1, 2], path)
        with self.assertRaisesRegex(UserError, "holds a list, expected a dict"):
            checkpoint.load(path, "cpu")


def _zeros(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


class MismatchTest(absltest.TestCase):
    def test_equal_is_none(self) -> None:
        self.assertIsNone(checkpoint.describe_mismatch(_zeros(a=(2,)), _zeros(a=(2,))))

    def test_names_all_three_kinds(self) -> None:
        expected = _zeros(a=(1,), b=(2,), c=(3,), d=(4,), e=(5, 6))
        found = _zeros(e=(6, 5), z=())
        self.assertEqual(
            checkpoint.describe_mismatch(expected, found),
            "4 missing: a [1], b [2], c [3] and 1 more; 1 unexpected: z []; "
            "1 of another shape: e [6, 5] instead of [5, 6]",
        )

    def test_load_strict(self) -> None:
        found = {"b": torch.ones(2), "a": torch.ones(1)}
        loaded = checkpoint.load_strict(found, _zeros(a=(1,), b=(2,)), Path("x.pt"))
        self.assertEqual(list(loaded), ["a", "b"])
        self.assertIs(loaded["a"], found["a"])
        with self.assertRaisesRegex(UserError, r"x\.pt is of another architecture: 1 missing: c"):
            checkpoint.load_strict(found, _zeros(a=(1,), b=(2,), c=(3,)), Path("x.pt"))


if __name__ == "__main__":
    absltest.main()
