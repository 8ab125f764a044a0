"""Tests of jigclu.models.weights, with files of every origin."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.models import weights
from jigclu.models.encoder import create_encoder, encoder_names, encoder_tensors
from jigclu.models.jigclu import JigClu
from jigclu.system.errors import UserError
from tests import samples

_RESNET = torchvision.models.resnet18(num_classes=5).state_dict()


def _our_model() -> dict[str, Tensor]:
    encoder = {
        f"encoder.{key}": torch.zeros_like(value)
        for key, value in _RESNET.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    heads = {"fc_clu.0.weight": torch.zeros(512, 512), "fc_loc.weight": torch.zeros(4, 512)}
    return encoder | heads


def _with_prefix(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in _RESNET.items()}


class WeightsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "weights.pth"

    def _load(
        self, contents: Mapping[str, Any], model: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], weights.LoadReport]:
        torch.save(contents, self.path)
        return self._load_file(_our_model() if model is None else model)

    def _load_file(
        self, model: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], weights.LoadReport]:
        return weights.match_weights(weights.read_weights(self.path), model, self.path)

    @parameterized.named_parameters(
        ("torchvision", _with_prefix("")),
        ("torchvision_ddp", _with_prefix("module.")),
        ("moco", {"state_dict": _with_prefix("module.encoder_q.")}),
        ("moco_v3", {"state_dict": _with_prefix("module.base_encoder."), "epoch": 3}),
        ("simsiam", {"state_dict": _with_prefix("module.encoder.")}),
        ("without_ddp", _with_prefix("encoder.")),
        ("backbone", {"state_dict": _with_prefix("backbone.")}),
    )
    def test_reads_encoders_of_other_origins(self, contents: Mapping[str, Any]) -> None:
        values, report = self._load(contents)
        self.assertEqual(report.missing, ["fc_clu.0.weight", "fc_loc.weight"])
        self.assertEqual(report.unexpected, ["encoder.fc.weight", "encoder.fc.bias"])
        self.assertEmpty(report.mismatched)
        self.assertEqual(list(values), list(_our_model()))
        for key in report.loaded:
            expected = _RESNET[key.removeprefix("encoder.")]
            torch.testing.assert_close(values[key], expected, rtol=0, atol=0)

    def test_reads_safetensors(self) -> None:
        self.path = self.path.with_suffix(".safetensors")
        safetensors.torch.save_file(_RESNET, self.path)
        values, report = self._load_file(_our_model())
        self.assertLen(report.loaded, len(_our_model()) - 2)
        key = "encoder.layer4.1.bn2.weight"
        torch.testing.assert_close(values[key], _RESNET["layer4.1.bn2.weight"], rtol=0, atol=0)
        self.path.write_bytes(self.path.read_bytes()[:-1])
        with self.assertRaisesRegex(UserError, "corrupt, truncated"):
            self._load_file(_our_model())

    def test_moco_file_gives_the_query_encoder(self) -> None:
        keys = {key: value + 1 for key, value in _with_prefix("module.encoder_k.").items()}
        values, report = self._load({"state_dict": keys | _with_prefix("module.encoder_q.")})
        torch.testing.assert_close(values["encoder.conv1.weight"], _RESNET["conv1.weight"])
        self.assertIn("module.encoder_k.conv1.weight", report.unexpected)

    @parameterized.parameters(True, False)
    def test_reads_the_published_checkpoint_with_heads(self, new_format: bool) -> None:
        model = JigClu(create_encoder("resnet50", False), 2, 8, 128).state_dict()
        contents = samples.published_checkpoint("resnet50", 2048)
        torch.save(contents, self.path, _use_new_zipfile_serialization=new_format)
        values, report = self._load_file(model)
        self.assertEqual(report, (list(model), [], [], []))
        self.assertLen(values, 53 + 53 * 4 + 6)
        for key, value in values.items():
            published = f"module.encoder.{key.removeprefix('encoder.')}"
            torch.testing.assert_close(value, contents["state_dict"][published], rtol=0, atol=0)

    def test_reads_a_checkpoint_of_this_project(self) -> None:
        contents = {
            "parameters": {"encoder.conv1.weight": torch.zeros(2)},
            "buffers": {"encoder.bn1.running_mean": torch.zeros(2)},
            "optimizer": {"momentum": {"encoder.conv1.weight": torch.ones(2)}},
        }
        torch.save(contents, self.path)
        found = weights.read_weights(self.path)
        self.assertEqual(list(found), ["encoder.conv1.weight", "encoder.bn1.running_mean"])

    def test_report_names_what_did_not_fit(self) -> None:
        model = _our_model() | {"fc_loc.weight": torch.zeros(9, 512)}
        values, report = self._load(
            {**_with_prefix("encoder."), "fc_loc.weight": torch.ones(4, 512)}, model
        )
        self.assertIs(values["fc_loc.weight"], model["fc_loc.weight"])
        shapes = "fc_loc.weight [4, 512] instead of [9, 512]"
        self.assertEqual(report.mismatched, [shapes])
        lines = report.summary().splitlines()
        self.assertStartsWith(lines[0], f"loaded {len(model) - 2} tensors from the file: ")
        for name in ("fc_clu.0.weight", "encoder.fc.bias", shapes):
            self.assertIn(f"  {name}", lines)

    def test_values_have_the_dtype_of_the_model(self) -> None:
        found = {"encoder.conv1.weight": torch.ones(2, dtype=torch.float16)}
        model = {"encoder.conv1.weight": torch.zeros(2)}
        values, _ = weights.match_weights(found, model, self.path)
        self.assertEqual(values["encoder.conv1.weight"].dtype, torch.float32)

    @parameterized.parameters(
        ("resnet34", False, "80 missing: encoder.layer1.2.conv1.weight"),
        ("resnet50", False, "of another shape: encoder.layer1.0.conv1.weight"),
        ("resnet18", True, "1 of another shape: encoder.conv1.weight"),
        ("wide_resnet50_2", False, "of another shape"),
    )
    def test_error_names_the_encoder_in_the_file(
        self, name: str, small_stem: bool, message: str
    ) -> None:
        # If one encoder contains the other, the file holds the smaller one.
        held, model = create_encoder(name, small_stem).state_dict(), _our_model()
        if name == "resnet34":
            model, held = encoder_tensors(create_encoder(name, False)), dict(_RESNET)
            name = "resnet18"
        with self.assertRaisesRegex(UserError, message) as raised:
            self._load(held, model)
        text = str(raised.exception)
        self.assertIn(f"{self.path} does not hold this encoder", text)
        self.assertEndsWith(
            text, f"it holds encoder = {name!r} and small_stem = {small_stem}: bind these"
        )
        self.assertNotIn("\n", text)

    def test_requires_every_tensor_of_the_encoder(self) -> None:
        for absent in ("conv1.weight", "layer3.1.bn2.running_var"):
            kept = {key: value for key, value in _RESNET.items() if key != absent}
            with self.assertRaisesRegex(UserError, f"missing: .*{absent}.*the whole encoder"):
                self._load({"state_dict": {f"encoder.{key}": v for key, v in kept.items()}})

    def test_recognizes_every_encoder_from_names_and_shapes(self) -> None:
        for name in encoder_names():
            for small_stem in (False, True):
                with torch.device("meta"):
                    tensors = encoder_tensors(create_encoder(name, small_stem))
                self.assertEqual(weights.recognize_encoder(tensors), (name, small_stem))

    def test_recognizes_an_encoder_beside_heads_of_any_name(self) -> None:
        heads = {"projection_head.0.weight": torch.zeros(2), "fc.bias": torch.zeros(5)}
        torch.save({f"module.{k}": v for k, v in (_RESNET | heads).items()}, self.path)
        found = weights.read_weights(self.path)
        self.assertIn("encoder.projection_head.0.weight", found)
        self.assertEqual(weights.recognize_encoder(found), ("resnet18", False))

    @parameterized.parameters("conv1.weight", "bn1.bias", "layer3.1.bn2.running_var")
    def test_recognizes_no_incomplete_encoder(self, absent: str) -> None:
        found = {f"encoder.{key}": value for key, value in _RESNET.items() if key != absent}
        self.assertIsNone(weights.recognize_encoder(found))

    def test_check_encoder_rejects_unknown_names_and_other_encoders(self) -> None:
        torch.save(_RESNET, self.path)
        weights.check_encoder(str(self.path), "resnet18", False)
        weights.check_encoder(None, "resnet50", True)
        for init_from in (None, str(self.path)):
            with self.assertRaisesRegex(UserError, "resnet19.*did you mean"):
                weights.check_encoder(init_from, "resnet19", False)
        with self.assertRaisesRegex(UserError, "encoder = 'resnet18' and small_stem = False"):
            weights.check_encoder(str(self.path), "resnet50", False)

    def test_load_into_copies_into_the_given_tensors(self) -> None:
        torch.save(_RESNET, self.path)
        model = _our_model()
        message = weights.load_into(self.path, model)
        torch.testing.assert_close(model["encoder.conv1.weight"], _RESNET["conv1.weight"])
        self.assertStartsWith(message, f"initial weights of {self.path}: loaded 100 tensors")

    @parameterized.parameters(
        ({"epoch": 3},),
        ({"state_dict": 5},),
        ({"parameters": 3},),
        ({1: torch.zeros(1)},),
        ({"parameters": [], "buffers": {}},),
    )
    def test_rejects_files_without_weights(self, contents: Mapping[Any, Any]) -> None:
        with self.assertRaisesRegex(
            UserError, f"holds no weights.*keys are {next(iter(contents))}"
        ):
            self._load(contents)

    @parameterized.parameters(0, 10, 5000, -100)
    def test_rejects_truncated_files(self, size: int) -> None:
        torch.save({"state_dict": _RESNET}, self.path)
        self.path.write_bytes(self.path.read_bytes()[:size])
        with self.assertRaisesRegex(UserError, r"weights\.pth cannot be read"):
            weights.read_weights(self.path)

    def test_never_runs_code_in_a_file(self) -> None:
        marker = self.path.with_name("ran")
        torch.save({"state_dict": _RESNET, "arch": _RunsCode(marker)}, self.path)
        with self.assertRaisesRegex(UserError, "more than plain values"):
            weights.read_weights(self.path)
        self.assertFalse(marker.exists())
        torch.load(self.path, weights_only=False)
        self.assertTrue(marker.exists())


class _RunsCode:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


if __name__ == "__main__":
    absltest.main()
