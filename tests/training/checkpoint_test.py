"""Tests of jigclu.training.checkpoint."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.system.errors import UserError
from jigclu.training import checkpoint


def _contents(step: int = 7) -> dict[str, Any]:
    return {
        "step": step,
        "parameters": {"encoder.conv1.weight": torch.arange(6.0).reshape(2, 3)},
        "buffers": {"encoder.bn1.running_mean": torch.tensor([1.5, -2.0])},
        "optimizer": {"encoder.conv1.weight": torch.full((2, 3), 0.25)},
        "rng": {"cpu": torch.get_rng_state()},
        "config": "pretrain.batch_size = 4\n",
        "settings": {"batch_size": "4"},
        "versions": {"torch": "2", "jigclu": "0", "torchvision": "0"},
        "scores": [(0, {"knn_accuracy": 0.25})],
        "data": "ab12",
        "machine": {"precision": ["float32", "bound"]},
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

    def test_load_returns_saved_contents(self) -> None:
        path = self._save(1234)
        self.assertEqual(path, self.folder / "step_00001234.pt")
        loaded = checkpoint.load(path, "cpu")
        for key, value in _contents(1234).items():
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
        self._save(5)
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

    def assert_rejected(self, contents: dict[str, Any], message: str) -> None:
        path = self.workdir / "other.pt"
        torch.save(contents, path)
        for read in (lambda: checkpoint.load(path, "cpu"), lambda: checkpoint.peek(path)):
            with self.assertRaisesRegex(UserError, rf"checkpoint \S+/other\.pt {message}"):
                read()

    def test_rejects_files_of_other_projects(self) -> None:
        self.assert_rejected(
            {"step": 1, "parameters": {}, "buffers": {}, "config": ""},
            "lacks optimizer, rng, settings, versions, scores, data, machine: .*bind init_from",
        )

    @parameterized.parameters(*checkpoint.KEYS)
    def test_rejects_a_checkpoint_that_lacks_a_key(self, key: str) -> None:
        contents = _contents()
        del contents[key]
        self.assert_rejected(contents, f"lacks {key}: ")

    def test_rejects_values_of_unexpected_types(self) -> None:
        self.assert_rejected(
            _contents() | {"step": "7", "scores": {}},
            "is corrupt: step, scores have unexpected types",
        )
        self.assert_rejected(
            _contents() | {"settings": [], "machine": "cpu"},
            "is corrupt: settings, machine have unexpected types",
        )

    @parameterized.parameters("0.1.0", "0.2.0")
    def test_rejects_checkpoints_of_versions_with_other_settings(self, version: str) -> None:
        contents = _contents() | {"versions": {"jigclu": version}}
        del contents["settings"]
        self.assert_rejected(
            contents, rf"was written by version {version}, .*bind init_from to this file"
        )

    def test_peek_reads_plain_values(self) -> None:
        peeked = checkpoint.peek(self._save(7))
        for key in ("step", "config", "settings", "versions", "scores", "data", "machine"):
            self.assertEqual(peeked[key], _contents()[key])


if __name__ == "__main__":
    absltest.main()
