"""Tests of jigclu.models.weights, with files of every origin."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed
import torchvision
from absl.testing import absltest, parameterized
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from jigclu.models import weights
from jigclu.models.encoder import create_encoder, encoder_names, encoder_tensors
from jigclu.models.jigclu import JigClu
from jigclu.models.weights import Architecture, LoadReport, Weights
from jigclu.system import tensor_files
from jigclu.system.errors import UserError
from tests import samples

RESNET18 = Architecture("resnet18", False)
_RESNET = torchvision.models.resnet18(num_classes=5)
_STATE = _RESNET.state_dict()


def _our_model() -> dict[str, Tensor]:
    encoder = {
        f"encoder.{key}": torch.zeros_like(value)
        for key, value in _STATE.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    heads = {"fc_clu.0.weight": torch.zeros(512, 512), "fc_loc.weight": torch.zeros(4, 512)}
    return encoder | heads


def _with_prefix(prefix: str, change: float = 0.0) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value + change for key, value in _STATE.items()}


class _Wrapper(nn.Module):
    """A larger model with an encoder and a head of its own."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(2, 2)


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return compiled


def _reference_training(model: nn.Module) -> dict[str, Any]:
    """Returns what torchvision's and timm's training scripts save, after a step."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, data_path="x", device=torch.device("cpu"), aa=None),
        "best_acc1": np.float64(0.5),
    }


class WeightsTestCase(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "weights.pth"

    def read(self, contents: Mapping[Any, Any], address: str | None = None) -> Weights:
        torch.save(contents, self.path)
        return weights.select_weights(tensor_files.read(self.path, "cpu"), self.path, address)

    def rejected(self, contents: Mapping[Any, Any], address: str | None = None) -> str:
        with self.assertRaises(UserError) as caught:
            self.read(contents, address)
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        self.assertNotRegex(message, "corrupt|damaged|truncated|remove|delete")
        return message

    def assert_encoder(self, found: Weights, change: float = 0.0) -> None:
        self.assertEqual(found.architecture, RESNET18)
        names = [name for name in found.tensors if re.match(r"encoder\.(?!fc)", name)]
        self.assertLen(names, 20 * 5)
        for name in names:
            expected = _STATE[name.removeprefix("encoder.")] + change
            torch.testing.assert_close(found.tensors[name], expected, rtol=0, atol=0)


class OriginsTest(WeightsTestCase):
    @parameterized.named_parameters(
        ("torchvision", _with_prefix("")),
        ("torchvision_ddp", _with_prefix("module.")),
        ("moco", {"state_dict": _with_prefix("module.encoder_q.")}),
        ("moco_v3", {"state_dict": _with_prefix("module.base_encoder."), "epoch": 3}),
        ("simsiam", {"state_dict": _with_prefix("module.encoder.")}),
        ("lightning", {"state_dict": _with_prefix("model.backbone."), "hparams": {"lr": 0.1}}),
        ("deeply_nested", {"a": {"b": {"c": {1: _with_prefix("x.y.z.")}}}}),
        ("without_ddp", _with_prefix("encoder.")),
    )
    def test_reads_encoders_of_other_projects(self, contents: Mapping[str, Any]) -> None:
        self.assert_encoder(self.read(contents))

    @parameterized.named_parameters(
        ("compiled", _compiled),
        ("data_parallel", nn.DataParallel),
        ("compiled_in_data_parallel", lambda model: nn.DataParallel(_compiled(model))),
        ("averaged", AveragedModel),
        ("averaged_and_compiled", lambda model: _compiled(AveragedModel(model))),
        ("in_a_larger_model", lambda model: _Wrapper(backbone=model)),
        ("twice_inside", lambda model: _Wrapper(model=_Wrapper(backbone=_compiled(model)))),
    )
    def test_reads_wrapped_modules(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self.assert_encoder(self.read({"state_dict": wrap(_RESNET).state_dict()}))

    def test_reads_modules_of_distributed_training(self) -> None:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        self.addCleanup(torch.distributed.destroy_process_group)
        inside = DistributedDataParallel(_compiled(_RESNET)).state_dict()
        self.assertIn("module._orig_mod.conv1.weight", inside)
        self.assert_encoder(self.read({"model": inside}))
        self.assert_encoder(self.read(_compiled(DistributedDataParallel(_RESNET)).state_dict()))

    @parameterized.parameters(True, False)
    def test_reads_files_with_arguments_scores_and_optimizer(self, new_format: bool) -> None:
        model = torchvision.models.resnet18(num_classes=5)
        contents = _reference_training(model)
        torch.save(contents, self.path, _use_new_zipfile_serialization=new_format)
        for read in (lambda path: tensor_files.read(path, "cpu"), tensor_files.peek):
            found = weights.select_weights(read(self.path), self.path)
            self.assertEqual(found.architecture, RESNET18)
            expected = model.state_dict()["layer4.1.bn2.weight"]
            self.assertTrue(torch.equal(found.tensors["encoder.layer4.1.bn2.weight"], expected))

    def test_reads_safetensors(self) -> None:
        self.path = self.path.with_suffix(".safetensors")
        safetensors.torch.save_file(_STATE, self.path, {"format": "pt"})
        self.assert_encoder(weights.select_weights(tensor_files.read(self.path, "cpu"), self.path))

    @parameterized.parameters(True, False)
    def test_reads_the_published_checkpoint_with_heads(self, new_format: bool) -> None:
        model = JigClu(create_encoder("resnet50", False), 2, 8, 128).state_dict()
        contents = samples.published_checkpoint("resnet50", 2048)
        torch.save(contents, self.path, _use_new_zipfile_serialization=new_format)
        found = weights.select_weights(tensor_files.read(self.path, "cpu"), self.path)
        values, report = weights.match_weights(found, model, self.path)
        self.assertEqual(report, (list(model), [], [], []))
        self.assertLen(values, 53 + 53 * 4 + 6)
        for key, value in values.items():
            published = f"module.encoder.{key.removeprefix('encoder.')}"
            torch.testing.assert_close(value, contents["state_dict"][published], rtol=0, atol=0)

    def test_reads_a_checkpoint_of_this_project(self) -> None:
        tensors = encoder_tensors(create_encoder("resnet34", True))
        statistics = {name: tensors[name] for name in tensors if ".running_" in name}
        trained = {name: tensors[name] for name in tensors if name not in statistics}
        contents = {
            "parameters": trained | {"fc_loc.weight": torch.ones(4, 512)},
            "buffers": statistics,
            "optimizer": {"momentum": trained},
        }
        found = self.read(contents)
        self.assertEqual(found.architecture, Architecture("resnet34", True))
        self.assertCountEqual(found.tensors, [*tensors, "fc_loc.weight"])


class SeveralEncodersTest(WeightsTestCase):
    def test_copies_are_rejected_with_their_names(self) -> None:
        contents = {
            "state_dict": _with_prefix("module."),
            "state_dict_ema": _with_prefix("", 1.0),
            "args": argparse.Namespace(model="resnet18"),
        }
        message = self.rejected(contents)
        self.assertStartsWith(message, f"{self.path} holds 2 encoders; choose one of ")
        self.assertEndsWith(
            message, f"'{self.path}:state_dict.module', '{self.path}:state_dict_ema'"
        )
        self.assert_encoder(self.read(contents, "state_dict.module"))
        self.assert_encoder(self.read(contents, "state_dict_ema"), 1.0)
        message = self.rejected(contents, "state_dict_emma")
        self.assertIn("no encoder named 'state_dict_emma'; choose from", message)

    def test_two_prefixes_in_one_dict_are_rejected_with_their_names(self) -> None:
        contents = _with_prefix("student.") | _with_prefix("", 1.0)
        message = self.rejected(contents)
        self.assertEndsWith(message, f"'{self.path}:student', '{self.path}:'")
        self.assert_encoder(self.read(contents, "student"))
        self.assert_encoder(self.read(contents, ""), 1.0)

    @parameterized.parameters(
        ("module.encoder_q.", "module.encoder_k."),
        ("module.base_encoder.", "module.momentum_encoder."),
    )
    def test_moco_files_give_the_trained_encoder(self, trained: str, momentum: str) -> None:
        contents = {"state_dict": _with_prefix(momentum, 1.0) | _with_prefix(trained)}
        self.assert_encoder(self.read(contents))
        self.assert_encoder(self.read(contents, f"state_dict.{momentum}".rstrip(".")), 1.0)

    @parameterized.parameters((("trained", "averaged"),), (("averaged", "trained"),))
    def test_the_average_of_our_pre_training_is_used_by_default(
        self, order: tuple[str, str]
    ) -> None:
        copies = {
            "trained": _with_prefix("encoder."),
            "averaged": _with_prefix(f"{weights.AVERAGED}.", 1.0),
        }
        first, second = (copies[name] for name in order)
        heads = {"fc_loc.weight": torch.ones(4, 512)}
        contents = {
            "parameters": first | heads,
            "buffers": second | _with_prefix("momentum_encoder.", 2.0),
        }
        found = self.read(contents)
        self.assert_encoder(found, 1.0)
        self.assertTrue(found.is_averaged)
        self.assertIn("fc_loc.weight", found.tensors)
        for address, change in (("encoder", 0.0), ("momentum_encoder", 2.0)):
            chosen = self.read(contents, address)
            self.assert_encoder(chosen, change)
            self.assertFalse(chosen.is_averaged)

    def test_one_module_under_two_names_is_one_encoder(self) -> None:
        model = _Wrapper(backbone=_RESNET, method=_Wrapper(backbone=_RESNET))
        self.assertIn("method.backbone.conv1.weight", model.state_dict())
        self.assert_encoder(self.read({"state_dict": model.state_dict()}))

    def test_incomplete_copies_do_not_count(self) -> None:
        ema = {key: value for key, value in _with_prefix("").items() if "running" not in key}
        self.assert_encoder(self.read({"model": _with_prefix(""), "ema": ema}))


class RejectedTest(WeightsTestCase):
    @parameterized.parameters("conv1.weight", "bn1.bias", "layer3.1.bn2.running_var")
    def test_missing_layers_are_named_with_what_was_found(self, absent: str) -> None:
        kept = {key: value for key, value in _STATE.items() if key != absent}
        message = self.rejected({"state_dict": {f"net.{key}": v for key, v in kept.items()}})
        self.assertIn(f"compared with resnet18, 1 missing: {absent}", message)
        self.assertRegex(message, r"found net\.\S+, net\.\S+, net\.\S+ and \d+ more$")

    @parameterized.parameters(
        ({"epoch": 3}, "found epoch"),
        ({"state_dict": 5}, "found state_dict"),
        ({"parameters": 3}, "found parameters"),
        ({1: torch.zeros(1)}, "found 1"),
        ({}, "found none"),
        ({"model": {"stem.0.weight": torch.zeros(1)}}, "found stem.0.weight"),
    )
    def test_files_without_an_encoder_say_what_they_hold(
        self, contents: Mapping[Any, Any], found: str
    ) -> None:
        message = self.rejected(contents)
        self.assertStartsWith(message, f"{self.path} holds no complete encoder: expected ")
        self.assertEndsWith(message, found)

    def test_dicts_that_contain_themselves_end(self) -> None:
        contents: dict[str, Any] = {"epoch": 3}
        contents["again"] = contents
        self.rejected(contents)


class RecognitionTest(WeightsTestCase):
    def test_recognizes_every_encoder_from_names_and_shapes(self) -> None:
        for name in encoder_names():
            for small_stem in (False, True):
                with torch.device("meta"):
                    tensors = create_encoder(name, small_stem).state_dict()
                self.assertEqual(weights.recognize(tensors), (name, small_stem))

    def test_recognizes_an_encoder_beside_heads_of_any_name(self) -> None:
        heads = {"projection_head.0.weight": torch.zeros(2), "layer_norm.bias": torch.zeros(5)}
        self.assert_encoder(self.read({f"module.{k}": v for k, v in (_STATE | heads).items()}))


class MatchTest(WeightsTestCase):
    def match(
        self, contents: Mapping[str, Any], model: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], LoadReport]:
        return weights.match_weights(self.read(contents), model, self.path)

    def test_report_names_what_did_not_fit(self) -> None:
        model = _our_model() | {"fc_loc.weight": torch.zeros(9, 512)}
        heads = {"fc_loc.weight": torch.ones(4, 512)}
        values, report = self.match(_with_prefix("encoder.") | heads, model)
        self.assertIs(values["fc_loc.weight"], model["fc_loc.weight"])
        shapes = "fc_loc.weight [4, 512] instead of [9, 512]"
        self.assertEqual(report.mismatched, [shapes])
        self.assertEqual(report.missing, ["fc_clu.0.weight"])
        self.assertEqual(report.unexpected, ["encoder.fc.weight", "encoder.fc.bias"])
        lines = report.summary().splitlines()
        self.assertLen(lines, 4)
        self.assertStartsWith(lines[0], f"loaded {len(model) - 2} tensors from the file: ")
        for line, names in zip(
            lines[1:],
            ("fc_clu.0.weight", shapes, "encoder.fc.weight, encoder.fc.bias"),
            strict=True,
        ):
            self.assertEndsWith(line, f": {names}")

    def test_heads_are_not_reported_where_they_are_always_ignored(self) -> None:
        contents = samples.published_checkpoint("resnet18", 512)
        _, report = self.match(contents, encoder_tensors(create_encoder("resnet18", False)))
        self.assertEqual((report.missing, report.unexpected, report.mismatched), ([], [], []))
        self.assertNotIn("fc_", report.summary())

    def test_values_have_the_dtype_of_the_model(self) -> None:
        half = {key: value.half() for key, value in _STATE.items()}
        values, _ = self.match(half, encoder_tensors(create_encoder("resnet18", False)))
        self.assertEqual(values["encoder.conv1.weight"].dtype, torch.float32)

    @parameterized.parameters(
        ("resnet34", False, "80 unexpected: encoder.layer1.2.conv1.weight"),
        ("resnet50", False, "of another shape: encoder.layer1.0.conv1.weight"),
        ("resnet18", True, "1 of another shape: encoder.conv1.weight"),
        ("wide_resnet50_2", False, "of another shape"),
    )
    def test_error_names_the_encoder_in_the_file(
        self, name: str, small_stem: bool, message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message) as raised:
            self.match(create_encoder(name, small_stem).state_dict(), _our_model())
        held = f"holds another encoder, encoder = {name!r} and small_stem = {small_stem}: bind"
        self.assertIn(f"{self.path} {held}", str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))


if __name__ == "__main__":
    absltest.main()
