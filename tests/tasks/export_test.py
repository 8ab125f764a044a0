"""Tests of jigclu.tasks.export: every file is correct, or it is rejected."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import random
import stat
import subprocess
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from absl.testing import absltest, parameterized
from torch import Tensor

import jigclu
from jigclu.data.procedural import ProceduralImages
from jigclu.models.encoder import create_encoder, encoder_tensors
from jigclu.system import files, tensor_files
from jigclu.system.errors import UserError
from jigclu.tasks.export import ExportTask
from jigclu.tasks.export_formats import FORMATS, Description
from jigclu.training import initial_weights
from jigclu.training.settings import with_settings
from tests import samples
from tests.folder_case import FolderTestCase

TASK = ExportTask(
    init_from="",
    encoder="resnet18",
    small_stem=False,
    formats=tuple(name for name, form in FORMATS.items() if form.basic_blocks),
    source=ProceduralImages(images=10, size=48, seed=0, split="val"),
    images=4,
    eval_transform=samples.eval_transform(resize=40, crop=32),
    notes="Measured with **care**.",
)


def _trained_encoder(small_stem: bool) -> dict[str, Tensor]:
    """Returns weights whose statistics are not those of an untrained network."""
    torch.manual_seed(2)
    tensors = create_encoder("resnet18", small_stem).state_dict()
    for name, value in tensors.items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            value.uniform_(0.5, 1.0)
    return tensors


def _flip_bit(path: Path, place: int, bit: int) -> None:
    """Flips a bit of a file; the second call undoes it."""
    with open(path, "r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ (1 << bit)]))


class ExportTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.origin = self.folder / "weights.pth"
        self.workdir = self.folder / "out"

    def changed(self, **changes: Any) -> ExportTask:
        return with_settings(TASK, init_from=str(self.origin), **changes)

    def run_task(self, **changes: Any) -> str:
        task = self.changed(**changes)
        task.check(self.workdir)
        self.assertFalse(self.workdir.exists())
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            task.run(self.workdir, "eval_transform.crop = 32")
        return printed.getvalue()

    def files(self) -> set[str]:
        return {path.name for path in self.workdir.iterdir() if path.is_file()}

    def test_writes_every_format_and_a_card(self) -> None:
        torch.save(_trained_encoder(False), self.origin)
        printed = self.run_task()
        names = {f"resnet18{form.suffix}" for form in FORMATS.values() if form.basic_blocks}
        self.assertEqual(self.files(), names | {"card.md", files.SUMS})
        subprocess.run(
            ["sha256sum", "--check", "--strict", files.SUMS], cwd=self.workdir, check=True
        )
        card = (self.workdir / "card.md").read_text()
        for name in names:
            path = self.workdir / name
            self.assertRegex(
                printed, rf"{path}: features of 4 images, up to [\d.]+, differ by [\d.e-]+ at most"
            )
            self.assertIn(hashlib.sha256(path.read_bytes()).hexdigest(), card)
        for text in ("Measured with **care**.", "onnxruntime ", "(0.5, 0.4, 0.3)", "None in the"):
            self.assertIn(text, card)
        self.assertNotIn("The stem is small", card)

    def test_exported_files_serve_as_initial_weights(self) -> None:
        tensors = _trained_encoder(False)
        torch.save(tensors, self.origin)
        self.run_task(formats=("torchvision", "safetensors"))
        for suffix in (".torchvision.pth", ".safetensors"):
            model = encoder_tensors(create_encoder("resnet18", False))
            initial_weights.load_into(str(self.workdir / f"resnet18{suffix}"), model)
            for name, value in tensors.items():
                torch.testing.assert_close(model[f"encoder.{name}"], value, rtol=0, atol=0)

    def test_every_flipped_bit_is_detected(self) -> None:
        torch.save(_trained_encoder(False), self.origin)
        self.run_task(formats=("torchvision", "safetensors", "detectron2"))
        paths = [path for path in self.workdir.iterdir() if path.suffix in (".pth", ".safetensors")]
        draw = random.Random(0)
        for path in paths:
            size = path.stat().st_size
            # Header, end and content; CRCs of zip and the library of safetensors miss many of them.
            places = [*range(0, 100, 20), size - 1, size // 2, *draw.sample(range(size), 8)]
            for place in places:
                bit = draw.randrange(8)
                _flip_bit(path, place, bit)
                with self.assertRaisesRegex(UserError, "is corrupt, its SHA-256 differs"):
                    initial_weights.read(str(path))
                _flip_bit(path, place, bit)
            tensor_files.read(path, "cpu")

    def test_safetensors_record_encoder_stem_and_preprocessing(self) -> None:
        torch.save(_trained_encoder(True), self.origin)
        self.run_task(formats=("torchvision", "safetensors"), small_stem=True)
        with safetensors.safe_open(self.workdir / "resnet18.safetensors", "pt") as file:
            metadata = file.metadata()
        expected = {
            "encoder": "resnet18",
            "small_stem": True,
            "resize": 40,
            "crop": 32,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.25, 0.2, 0.3],
        }
        self.assertEqual(metadata["format"], "pt")
        self.assertEqual(json.loads(metadata["jigclu"]), expected)
        encoder = jigclu.load_encoder(self.workdir)
        self.assertEqual(encoder.transform, TASK.eval_transform)
        card = (self.workdir / "card.md").read_text()
        self.assertIn("shorter side resized to 40 pixels, center crop of 32", card)

    def test_detectron2_file_has_its_final_names(self) -> None:
        tensors = _trained_encoder(False)
        torch.save(tensors, self.origin)
        self.run_task(formats=("detectron2",))
        contents = torch.load(self.workdir / "resnet18.detectron2.pth", weights_only=True)
        self.assertEqual(list(contents), ["model"])
        name = "backbone.bottom_up.res3.0.shortcut.norm.running_var"
        expected = tensors["layer2.0.downsample.1.running_var"]
        torch.testing.assert_close(contents["model"][name], expected, rtol=0, atol=0)
        self.assertLen(contents["model"], len(tensors))

    def test_exports_an_encoder_with_a_small_stem(self) -> None:
        torch.save(_trained_encoder(True), self.origin)
        formats = ("torchvision", "safetensors", "timm", "onnx")
        self.run_task(small_stem=True, formats=formats)
        self.assertLen(self.files(), 6)
        self.assertIn("The stem is small", (self.workdir / "card.md").read_text())

    def test_card_shows_recipe_and_scores_of_a_checkpoint_of_this_project(self) -> None:
        parameters = {f"encoder.{name}": value for name, value in _trained_encoder(False).items()}
        contents: dict[str, Any] = {
            "step": 70,
            "parameters": parameters,
            "buffers": {},
            "config": "pretrain.batch_size = 4\npretrain.encoder = 'resnet18'",
            "versions": {"torch": "2.11.0"},
            "scores": [(0, {"knn_accuracy": 0.25}), (70, {"knn_accuracy": 0.875})],
        }
        torch.save(contents, self.origin)
        self.run_task(formats=("safetensors",), notes="")
        card = (self.workdir / "card.md").read_text()
        self.assertIn("70 steps of this configuration:\n\n```\npretrain.batch_size = 4\n", card)
        self.assertIn("| after 70 steps | |\n|---|---|\n| knn_accuracy | 0.875 |", card)
        self.assertIn(
            f"Trained by torch 2.11.0.\nExported by jigclu {jigclu.__version__}, torch ", card
        )
        self.assertNotIn("## Notes", card)

    def test_card_shows_what_a_published_checkpoint_says(self) -> None:
        contents = samples.published_checkpoint("resnet18", 512)
        for name, value in _trained_encoder(False).items():
            contents["state_dict"][f"module.encoder.{name}"] = value
        contents |= {"config": {"lr": 0.1}, "scores": [0.5], "versions": "torch 1.6"}
        torch.save(contents, self.origin)
        self.run_task(formats=("torchvision",))
        self.assertIn("epoch: 200\narch: resnet18", (self.workdir / "card.md").read_text())

    def test_file_with_other_features_is_reported_and_kept(self) -> None:
        torch.save(_trained_encoder(False), self.origin)

        def spoilt(encoder: Any, about: Description) -> bytes:
            tensors = dict(encoder.state_dict())
            tensors["layer4.1.bn2.bias"] = tensors["layer4.1.bn2.bias"] + 0.01
            return safetensors.torch.save(tensors)

        wrong = FORMATS["safetensors"]._replace(serialize=spoilt)
        with (
            mock.patch.dict(FORMATS, safetensors=wrong),
            self.assertRaisesRegex(
                UserError,
                r"resnet18\.safetensors does not reproduce .* differ by 0\.01 instead of at most",
            ) as raised,
        ):
            self.run_task(formats=("torchvision", "safetensors"))
        self.assertNotIn("\n", str(raised.exception))
        self.assertEqual(self.files(), {"resnet18.torchvision.pth", "resnet18.safetensors"})

    def test_rejects_weights_that_diverged(self) -> None:
        tensors = _trained_encoder(False)
        tensors["bn1.weight"][0] = torch.nan
        torch.save(tensors, self.origin)
        with self.assertRaisesRegex(
            UserError, r"weights\.pth has weights that are not finite .* diverged"
        ):
            self.run_task(formats=("torchvision",))

    def test_rejects_a_file_whose_features_are_not_numbers(self) -> None:
        torch.save(_trained_encoder(False), self.origin)
        wrong = FORMATS["torchvision"]._replace(read=lambda *_: lambda images: images * torch.nan)
        with (
            mock.patch.dict(FORMATS, torchvision=wrong),
            mock.patch.object(ExportTask, "_features", lambda *arguments: arguments[2]),
            self.assertRaisesRegex(UserError, "they differ by nan instead of at most 0.0001"),
        ):
            self.run_task(formats=("torchvision",))

    def test_full_disk_keeps_the_older_file(self) -> None:
        torch.save(_trained_encoder(False), self.origin)
        self.run_task(formats=("torchvision",))
        path = self.workdir / "resnet18.torchvision.pth"
        before = path.read_bytes()
        error = OSError(28, "No space left on device")
        task = self.changed(formats=("torchvision",))
        with (
            mock.patch.object(os, "fsync", side_effect=error),
            contextlib.redirect_stderr(io.StringIO()),
            self.assertRaisesRegex(UserError, "cannot be written .No space left"),
        ):
            task.run(self.workdir, "")
        self.assertEqual(path.read_bytes(), before)
        self.assertEqual(self.files(), {path.name, "card.md", files.SUMS})

    def test_files_have_the_permissions_of_the_umask(self) -> None:
        torch.save(_trained_encoder(False), self.origin)
        umask = os.umask(0o022)
        try:
            self.run_task(formats=("safetensors",))
        finally:
            os.umask(umask)
        mode = (self.workdir / "resnet18.safetensors").stat().st_mode
        self.assertEqual(stat.S_IMODE(mode), 0o644)

    @parameterized.parameters(
        ({"formats": ()}, "formats is empty; choose from torchvision, safetensors"),
        ({"formats": ("onxx",)}, "formats contains 'onxx', .* unknown; choose from torchvision"),
        ({"images": 0}, r"images is 0; it must be in \[1, 10\]"),
        ({"images": 11}, r"images is 11; it must be in \[1, 10\]"),
        ({"crop": 41}, r"crop is 41; it must be in \[1, resize = 40\]"),
        ({"std": (0.0, 1.0, 1.0)}, "std is .0.0, 1.0, 1.0.; it must be three numbers above 0"),
        ({"encoder": "resnet50"}, "encoder = 'resnet18' and small_stem = False: bind these"),
        ({"small_stem": True}, "encoder = 'resnet18' and small_stem = False: bind these"),
    )
    def test_rejects_settings(self, changes: dict[str, Any], message: str) -> None:
        torch.save(_trained_encoder(False), self.origin)
        with self.assertRaisesRegex(UserError, message):
            self.changed(**changes).check(self.workdir)

    def test_rejects_a_missing_file_of_weights(self) -> None:
        with self.assertRaisesRegex(UserError, r"weights\.pth does not exist"):
            self.changed().check(self.workdir)

    def test_checks_but_does_not_run_without_weights(self) -> None:
        task = dataclasses.replace(TASK, init_from=None)
        task.check(self.workdir)
        with self.assertRaisesRegex(UserError, "init_from is None: there is nothing to export"):
            task.run(self.workdir, "")

    def test_rejects_detectron2_with_a_small_stem(self) -> None:
        torch.save(_trained_encoder(True), self.origin)
        with self.assertRaisesRegex(UserError, "'detectron2', which cannot hold small_stem = True"):
            self.changed(small_stem=True).check(self.workdir)

    @parameterized.parameters("resnet18", "resnet34")
    def test_rejects_a_c4_detector_of_basic_blocks(self, encoder: str) -> None:
        torch.save(create_encoder(encoder, False).state_dict(), self.origin)
        with self.assertRaisesRegex(
            UserError, f"'detectron2_c4', which cannot hold encoder = '{encoder}'"
        ):
            self.changed(encoder=encoder, formats=("detectron2_c4",)).check(self.workdir)

    def test_writes_a_c4_detector_of_bottleneck_blocks(self) -> None:
        torch.save(create_encoder("resnet50", False).state_dict(), self.origin)
        self.run_task(encoder="resnet50", formats=("detectron2_c4",))
        self.assertEqual(self.files(), {"resnet50.detectron2_c4.pth", "card.md", files.SUMS})

    @parameterized.parameters("timm", "onnx")
    def test_missing_packages_are_named(self, name: str) -> None:
        torch.save(_trained_encoder(False), self.origin)
        packages = " ".join(FORMATS[name].packages)
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(
                UserError, f"'{name}', which needs .*: pip install {packages}, or"
            ),
        ):
            self.changed(formats=("torchvision", name)).check(self.workdir)

    def test_plan_lists_files_and_comparison(self) -> None:
        plan = self.changed(formats=("onnx", "timm")).plan(Path("runs/none"))
        self.assertEqual(
            plan,
            "writes: resnet18.onnx, resnet18.timm.pth, card.md, SHA256SUMS\n"
            "compares: features of 4 images of 32x32 pixels, at most 0.0001 apart",
        )

    def test_compared_images_are_spread_over_the_source(self) -> None:
        whole = dataclasses.replace(TASK, images=10)._images()
        torch.testing.assert_close(TASK._images(), whole[[0, 2, 5, 7]])
        self.assertFalse(torch.equal(whole[0], whole[2]))


class FormatsTest(absltest.TestCase):
    def test_onnx_accepts_any_number_of_images(self) -> None:
        encoder = create_encoder("resnet18", False).eval()
        path = Path(self.create_tempdir().full_path) / "model.onnx"
        files.write_file(path, FORMATS["onnx"].serialize(encoder, samples.DESCRIPTION))
        features = FORMATS["onnx"].read(path, samples.DESCRIPTION)
        for count in (1, 3):
            images = torch.randn(count, 3, 32, 32)
            with torch.no_grad():
                expected = encoder(images).mean((2, 3))
            torch.testing.assert_close(features(images), expected, rtol=0, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
