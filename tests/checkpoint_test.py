"""Tests of jigclu.checkpoint."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu import checkpoint
from jigclu.errors import UserError


def _contents(step: int = 7) -> dict[str, Any]:
    return {
        "step": step,
        "parameters": {"encoder.conv1.weight": torch.arange(6.0).reshape(2, 3)},
        "buffers": {"encoder.bn1.running_mean": torch.tensor([1.5, -2.0])},
        "optimizer": {"encoder.conv1.weight": torch.full((2, 3), 0.25)},
        "rng": torch.get_rng_state(),
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


_RESNET = torchvision.models.resnet18(num_classes=5).state_dict()


def _our_model() -> dict[str, Tensor]:
    encoder = {
        f"encoder.{key}": torch.zeros_like(value)
        for key, value in _RESNET.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    heads = {"fc_clu.0.weight": torch.zeros(512, 512), "fc_loc.weight": torch.zeros(4, 512)}
    return encoder | heads


def _with_prefix(prefix: str, fc: str = "fc.") -> dict[str, Tensor]:
    return {f"{prefix}{key.replace('fc.', fc)}": value for key, value in _RESNET.items()}


class WeightsTest(parameterized.TestCase):
    def _read(self, contents: Mapping[str, Any]) -> dict[str, Tensor]:
        path = Path(self.create_tempdir().full_path) / "weights.pth"
        torch.save(contents, path)
        return checkpoint.read_weights(path)

    @parameterized.named_parameters(
        ("torchvision", _with_prefix("")),
        ("torchvision_ddp", _with_prefix("module.")),
        ("moco", {"state_dict": _with_prefix("module.encoder_q.")}),
        ("moco_v3", {"state_dict": _with_prefix("module.base_encoder."), "epoch": 3}),
        ("simsiam", {"state_dict": _with_prefix("module.encoder.")}),
        ("without_ddp", _with_prefix("encoder.")),
    )
    def test_encoders_of_other_origins(self, contents: Mapping[str, Any]) -> None:
        weights, report = checkpoint.load_weights(self._read(contents), _our_model())
        self.assertEqual(report.missing, ["fc_clu.0.weight", "fc_loc.weight"])
        self.assertEqual(report.unexpected, ["encoder.fc.weight", "encoder.fc.bias"])
        self.assertEmpty(report.mismatched)
        self.assertEqual(list(weights), list(_our_model()))
        for key in report.loaded:
            torch.testing.assert_close(weights[key], _RESNET[key.removeprefix("encoder.")])

    def test_moco_takes_the_query_encoder(self) -> None:
        keys = {key: value + 1 for key, value in _with_prefix("module.encoder_k.").items()}
        weights = self._read({"state_dict": keys | _with_prefix("module.encoder_q.")})
        torch.testing.assert_close(weights["encoder.conv1.weight"], _RESNET["conv1.weight"])

    def test_published_checkpoint_brings_its_heads(self) -> None:
        published = _with_prefix("module.encoder.", fc="fc_loc.")
        published = {key: value for key, value in published.items() if "fc_loc" not in key}
        published["module.encoder.fc_clu.0.weight"] = torch.full((512, 512), 2.0)
        published["module.encoder.fc_loc.weight"] = torch.full((4, 512), 3.0)
        contents = {"epoch": 200, "arch": "resnet18", "state_dict": published, "optimizer": {}}
        weights, report = checkpoint.load_weights(self._read(contents), _our_model())
        self.assertLen(report.loaded, len(_our_model()))
        self.assertEqual(report[1:], ([], [], []))
        self.assertEqual(weights["fc_loc.weight"].unique().tolist(), [3.0])

    def test_our_checkpoint(self) -> None:
        weights = self._read(_contents())
        self.assertEqual(list(weights), ["encoder.conv1.weight", "encoder.bn1.running_mean"])

    def test_report_tells_what_did_not_fit(self) -> None:
        model = _our_model() | {"encoder.conv1.weight": torch.zeros(64, 3, 3, 3)}
        weights, report = checkpoint.load_weights(self._read(_RESNET), model)
        self.assertIs(weights["encoder.conv1.weight"], model["encoder.conv1.weight"])
        shapes = "encoder.conv1.weight [64, 3, 7, 7] instead of [64, 3, 3, 3]"
        self.assertEqual(report.mismatched, [shapes])
        lines = report.summary().splitlines()
        self.assertEqual(lines[0], f"loaded {len(model) - 3} tensors from the file")
        for name in ("fc_clu.0.weight", "fc_loc.weight", "encoder.fc.bias", shapes):
            self.assertIn(f"  {name}", lines)

    def test_takes_the_dtype_of_the_model(self) -> None:
        found = {"encoder.conv1.weight": torch.ones(2, dtype=torch.float16)}
        weights, _ = checkpoint.load_weights(found, {"encoder.conv1.weight": torch.zeros(2)})
        self.assertEqual(weights["encoder.conv1.weight"].dtype, torch.float32)

    def test_nothing_of_the_encoder(self) -> None:
        found = self._read(
            {"features.0.weight": torch.zeros(2), "fc_loc.weight": torch.ones(4, 512)}
        )
        with self.assertRaisesRegex(UserError, "nothing of the encoder"):
            checkpoint.load_weights(found, _our_model())

    def test_no_weights_at_all(self) -> None:
        with self.assertRaisesRegex(UserError, "holds no weights.*its keys are epoch"):
            self._read({"epoch": 3})


if __name__ == "__main__":
    absltest.main()
