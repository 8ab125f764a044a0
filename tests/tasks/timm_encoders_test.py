"""Every task works with encoders of timm, and exports of them equal timm's own features."""

import importlib.util
import unittest
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from absl.testing import absltest, parameterized
from torch import Tensor

import jigclu
from jigclu.data.procedural import ProceduralImages
from jigclu.data.transform import EvalTransform
from jigclu.models import weights
from jigclu.models.encoder import create_encoder
from jigclu.ops.normalize import pool
from jigclu.system.errors import UserError
from jigclu.tasks.export import ExportTask
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.knn import KnnTask
from jigclu.tasks.linear import LinearTask
from jigclu.training import initial_weights
from jigclu.training.encoder_task import EncoderTask, resolve_encoder
from jigclu.training.settings import with_settings
from tests.samples import ADAMW, SIMCLR
from tests.small_tasks import (
    COMPUTE,
    KNN,
    LABELED,
    PRETRAINING,
    TaskTestCase,
    final,
    run_task,
)
from tests.tasks.segment_test import small_task as small_segmentation
from tests.tasks.segment_test import write_images

# With layer normalization, and with batch normalization and activation in one.
CONVNEXT, EFFICIENTNET = "timm/test_convnext", "timm/test_efficientnet"
ENCODER: dict[str, Any] = {"encoder": EFFICIENTNET, "small_stem": False}
# Montages of 128 pixels have 4x4 features.
PRETRAINED = with_settings(
    PRETRAINING, **ENCODER, patch_size=64, optimizer=ADAMW, learning_rate=1e-3, evaluators=(KNN,)
)
TRAIN = ProceduralImages(images=20, size=32, seed=0, split="train")
VAL = ProceduralImages(images=7, size=32, seed=0, split="val")


def networks(name: str) -> tuple[Any, Any]:
    """Returns timm's network with random statistics, and our encoder with its weights."""
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name.removeprefix("timm/"), num_classes=10).eval()
    for key, value in theirs.named_buffers():
        if "running_" in key:
            value.uniform_(0.5, 1.5)
    encoder = create_encoder(name, False).eval()
    names = encoder.state_dict()
    encoder.load_state_dict({k: v for k, v in theirs.state_dict().items() if k in names})
    return theirs, encoder


@unittest.skipUnless(importlib.util.find_spec("timm"), "needs timm")
class TimmEncodersTest(TaskTestCase):
    def pretrained(self, **changes: Any) -> Path:
        workdir = self.folder / "pretrained"
        run_task(with_settings(PRETRAINED, stop_after_steps=1, **changes), workdir)
        return workdir

    @parameterized.parameters(
        {"encoder": CONVNEXT, "micro_batch_size": 2},
        {"encoder": EFFICIENTNET, "method": SIMCLR},
    )
    def test_pre_training(self, **changes: Any) -> None:
        task = with_settings(PRETRAINED, **changes)
        printed = run_task(with_settings(task, stop_after_steps=2), self.folder / "parts")
        self.assertIn("knn_accuracy", printed)
        run_task(with_settings(task, stop_after_steps=4), self.folder / "parts")
        run_task(with_settings(task, stop_after_steps=4), self.folder / "whole")
        self.assert_same_training(final(self.folder / "parts"), final(self.folder / "whole"))

    def test_evaluations_of_a_run_find_its_encoder(self) -> None:
        workdir = self.pretrained()
        given: dict[str, Any] = {"encoder": "auto", "small_stem": "auto"}
        given |= {"init_from": str(workdir)}
        labeled = LABELED | given | {"source": TRAIN, "val": VAL}
        linear = LinearTask(
            **labeled,
            cache=None,
            learning_rates=(0.1,),
            weight_decays=(0.0,),
            held_out=0.1,
            momentum=0.9,
        )
        finetune = FinetuneTask(
            **labeled, optimizer=ADAMW, learning_rate=1e-3, head_learning_rate=1e-2
        )
        knn = KnnTask(**given, evaluator=KNN, seed=0, compute=COMPUTE)
        for name, task in (("linear", linear), ("finetune", finetune), ("knn", knn)):
            resolved = resolve_encoder(task, self.folder / name)
            self.assertEqual((resolved.encoder, resolved.small_stem), (EFFICIENTNET, False))
            printed = run_task(resolved, self.folder / name)
            self.assertIn("initial weights of", printed, name)

    @parameterized.parameters("linear", "fcn")
    def test_segmentation_finds_the_encoder_of_a_run(self, head: str) -> None:
        workdir = self.pretrained()
        for split, seed in (("train", 0), ("val", 1)):
            write_images(self.folder / "data" / split, 4, seed, classes=4)
        task = small_segmentation(
            str(self.folder / "data"),
            head=head,
            encoder="auto",
            small_stem="auto",
            init_from=str(workdir),
            train_size=64,
            stop_after_steps=1,
        )
        task = resolve_encoder(task, self.folder / head)
        self.assertEqual((task.encoder, task.small_stem), (EFFICIENTNET, False))
        printed = run_task(task, self.folder / head)
        self.assertIn("initial weights of", printed)
        self.assertIn("of 4 images of val, after 1 steps", printed)
        result, kept = final(self.folder / head), final(workdir)
        encoder = {k: v for k, v in kept["buffers"].items() if k.startswith("encoder.")}
        encoder |= {k: v for k, v in kept["parameters"].items() if k.startswith("encoder.")}
        trained = result["parameters"] | result["buffers"]
        changed = [k for k, v in encoder.items() if not torch.equal(trained[k], v)]
        self.assertEqual(bool(changed), head == "fcn")
        with self.assertRaisesRegex(UserError, "dilated_stages is 1; it must be 0 for timm/"):
            with_settings(task, dilated_stages=1).check(self.folder / "other")

    def test_api_loads_the_encoder_of_a_run(self) -> None:
        workdir = self.pretrained()
        extractor = jigclu.load_encoder(workdir)
        kept = final(workdir)
        for name, value in extractor.encoder.named_parameters():
            torch.testing.assert_close(value, kept["parameters"][f"encoder.{name}"])
        found = jigclu.extract_features(extractor, VAL)
        self.assertEqual(found.features.shape, (7, extractor.channels))
        self.assertTrue(found.features.isfinite().all())

    @parameterized.parameters(CONVNEXT, EFFICIENTNET, "timm/mobilenetv3_small_050")
    def test_exports_equal_timms_own_features(self, name: str) -> None:
        theirs, encoder = networks(name)
        origin = self.folder / "weights.pth"
        torch.save(theirs.state_dict(), origin)
        task = ExportTask(
            init_from=str(origin),
            encoder=name,
            small_stem=False,
            formats=("timm", "safetensors", "onnx"),
            source=VAL,
            images=4,
            eval_transform=EvalTransform(
                resize=64, crop=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
            ),
            notes="",
        )
        run_task(task, self.folder / "export")  # Compares each file with our encoder.
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected: Tensor = theirs.forward_features(images).mean((2, 3))
            torch.testing.assert_close(pool(encoder(images)), expected, rtol=1e-5, atol=1e-5)
        loaded = jigclu.load_encoder(self.folder / "export")
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)
        card = (self.folder / "export" / "card.md").read_text()
        self.assertIn("strict=False", card)
        for form in ("torchvision", "detectron2"):
            with self.assertRaisesRegex(
                UserError, f"^formats contains '{form}', .* network of timm"
            ):
                with_settings(task, formats=(form,)).check(self.folder / "other")

    @parameterized.parameters("state_dict", "wrapped", "safetensors")
    def test_files_of_timm_are_initial_weights(self, kind: str) -> None:
        theirs, encoder = networks(CONVNEXT)
        path = self.folder / ("w.safetensors" if kind == "safetensors" else "w.pth.tar")
        if kind == "safetensors":
            safetensors.torch.save_file(theirs.state_dict(), path)
        elif kind == "state_dict":
            torch.save(theirs.state_dict(), path)
        else:
            named = {f"module.{key}": value for key, value in theirs.state_dict().items()}
            torch.save({"epoch": 3, "arch": "test_convnext", "state_dict": named}, path)
            self.assertEqual(initial_weights.architecture(str(path)), (CONVNEXT, False))
        found = initial_weights.read(str(path), CONVNEXT)
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(found.tensors[f"encoder.{name}"], value)

    def test_a_bound_network_needs_no_stem_and_a_missing_one_is_asked_for(self) -> None:
        theirs, _ = networks(CONVNEXT)
        path = self.folder / "w.pth"
        torch.save(theirs.state_dict(), path)
        bound: dict[str, Any] = {"init_from": str(path), "small_stem": "auto"}
        task = EncoderTask(encoder=CONVNEXT, **bound)
        self.assertIs(resolve_encoder(task, self.folder).small_stem, False)
        with self.assertRaisesRegex(UserError, "^init_from: .* encoder bound to 'timm/<name>'"):
            resolve_encoder(EncoderTask(encoder="auto", **bound), self.folder)

    def test_weights_of_another_network_are_rejected_in_one_line(self) -> None:
        theirs, _ = networks(CONVNEXT)
        path = self.folder / "w.pth"
        torch.save(theirs.state_dict(), path)
        with self.assertRaisesRegex(
            UserError, f"^init_from: .*w.pth holds no complete encoder: .*{EFFICIENTNET}"
        ) as caught:
            with_settings(PRETRAINED, init_from=str(path)).check(self.folder / "run")
        self.assertNotIn("\n", str(caught.exception))
        workdir = self.pretrained()
        with self.assertRaisesRegex(
            UserError, f"holds another encoder, encoder = '{EFFICIENTNET}'"
        ):
            with_settings(PRETRAINED, encoder="resnet18", init_from=str(workdir)).check(
                self.folder / "run"
            )
        self.assertIsNone(weights.recognize(theirs.state_dict()))


if __name__ == "__main__":
    absltest.main()
