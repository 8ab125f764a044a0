"""Tests of jigclu.detection.predict."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
import json
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from detectron2.data import DatasetMapper
from detectron2.structures import Boxes, Instances
from PIL import ExifTags, Image
from pycocotools import mask as run_lengths
from torch import Tensor, nn

from jigclu.detection import config_file, predict
from jigclu.detection.pictures import Shape
from tests.detection.command_case import CONFIGS, SMALL
from tests.folder_case import FolderTestCase


class LeftHalfDetector(nn.Module):
    """Finds one dog in the left half of every image, and keeps the inputs."""

    def forward(self, inputs: list[dict[str, Tensor]]) -> list[dict[str, Instances]]:
        (self.inputs,) = inputs
        height, width = self.inputs["height"], self.inputs["width"]
        found = Instances(
            (height, width),
            pred_boxes=Boxes(torch.tensor([[0.0, 0.0, width / 2, height]])),
            scores=torch.tensor([0.75]),
            pred_classes=torch.tensor([1]),
        )
        return [{"instances": found}]


class FindObjectsTest(absltest.TestCase):
    def test_inputs_are_those_of_evaluation(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        path = f"{self.create_tempdir().full_path}/0.png"
        Image.fromarray(pixels).save(path)
        for image_format in ("RGB", "BGR"):
            cfg = config_file.read(str(CONFIGS / "R50-JigClu.yaml"))
            config_file.override(cfg, ["INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TEST", "96"])
            detector = LeftHalfDetector()
            predict.find_objects(cfg, detector, torch.from_numpy(pixels).permute(2, 0, 1))
            expected = DatasetMapper(cfg, is_train=False)({"file_name": path})
            self.assertEqual(expected["image"].shape, (3, 96, 128))
            self.assertTrue(torch.equal(detector.inputs["image"], expected["image"]))


class ToResultTest(absltest.TestCase):
    def test_result_is_in_cocos_format(self) -> None:
        shape = Shape((10, 20, 40, 50), 1, 0.75)
        result = predict.to_result(shape, 7, "a/b.jpg", ("cat", "dog"))
        expected = {"image_id": 7, "category_id": 2, "bbox": [10, 20, 30, 30], "score": 0.75}
        self.assertEqual(result, expected | {"file_name": "a/b.jpg", "category_name": "dog"})

    def test_masks_are_compressed_run_lengths(self) -> None:
        mask = np.random.default_rng(0).random((48, 64)) > 0.5
        result = predict.to_result(Shape((0, 0, 64, 48), 0, 0.75, mask), 1, "a.jpg", ("cat",))
        written = json.loads(json.dumps(result))["segmentation"]
        self.assertEqual(written["size"], [48, 64])
        np.testing.assert_array_equal(run_lengths.decode(written).astype(bool), mask)


class PredictTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.images, self.output = self.folder / "images", self.folder / "output"
        (self.images / "sub").mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(self.images / "sub/0.png")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(pixels).save(self.images / "turned.jpg", exif=exif)
        (self.images / "bad.png").write_bytes(b"no image")
        # A run: its configuration and its last checkpoint.
        (self.folder / "run").mkdir()
        cfg = config_file.read(str(CONFIGS / "R50-JigClu.yaml"))
        config_file.override(cfg, SMALL.split())
        self.config = self.folder / "run/config.yaml"
        self.config.write_text(cfg.dump(), encoding="utf-8")
        self.weights = self.folder / "run/model_final.pth"
        (self.folder / "run/last_checkpoint").write_text("model_final.pth", encoding="utf-8")
        self.write_weights({"class_names": ["cat", "dog"]})

    def write_weights(self, trainer: dict[str, object]) -> None:
        torch.save({"model": {}, "trainer": trainer}, self.weights)

    def run_command(self, *flags: str) -> tuple[int, str, str]:
        """Returns the exit status, standard output and standard error."""
        required = ("--config-file", self.config, "--images", self.images, "--output", self.output)
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = predict.main([*map(str, required), *flags])
        return status, out.getvalue(), errors.getvalue()

    def run_left_half_detector(self, *flags: str) -> tuple[int, str, str]:
        with (
            mock.patch.object(predict, "build_model", return_value=LeftHalfDetector()),
            mock.patch.object(predict, "DetectionCheckpointer"),
            mock.patch.object(predict, "_check_weights"),
        ):
            return self.run_command(*flags)

    def assert_rejected(self, message: str, *flags: str) -> None:
        status, _, errors = self.run_command(*flags)
        self.assertEqual(status, 2)
        self.assertRegex(errors, f"^error: .*{message}")
        self.assertLen(errors.splitlines(), 1)
        self.assertFalse((self.output / "predictions.json").exists())

    def test_writes_pictures_and_results_of_upright_images(self) -> None:
        status, out, errors = self.run_left_half_detector()
        self.assertEqual(status, 0, errors)
        self.assertStartsWith(out.splitlines()[-1], "2 objects on 2 images, 1 unreadable: ")
        self.assertRegex(errors, "bad.png is unreadable .*cannot identify image file")
        results = json.loads((self.output / "predictions.json").read_text(encoding="utf-8"))
        found = {result["file_name"]: result["bbox"] for result in results}
        self.assertEqual(found, {"sub/0.png": [0, 0, 32, 48], "turned.jpg": [0, 0, 24, 64]})
        self.assertEqual({result["category_name"] for result in results}, {"dog"})
        for name, size in (("sub/0.png", (480, 360)), ("turned.jpg", (360, 480))):
            with Image.open(self.output / f"pictures/{name}.png") as picture:
                self.assertEqual(picture.size, size)

    def test_predicts_with_the_last_checkpoint_of_a_run_above_the_score(self) -> None:
        cfg = config_file.read(str(self.config))
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        model = predict.build_model(cfg)
        contents = {"model": model.state_dict(), "trainer": {"class_names": ["cat", "dog"]}}
        torch.save(contents, self.weights)
        counts = {}
        for score in ("0", "0.3", "1"):
            self.output = self.folder / score
            status, _, errors = self.run_command("--score", score)
            self.assertEqual(status, 0, errors)
            text = (self.output / "predictions.json").read_text(encoding="utf-8")
            counts[score] = len(json.loads(text))
        self.assertGreater(counts["0"], counts["0.3"])
        self.assertEqual(counts["1"], 0)

    def test_elongated_images_are_left_out(self) -> None:
        Image.new("RGB", (2000, 1)).save(self.images / "line.png")
        Image.new("RGB", (1, 1)).save(self.images / "point.png")
        status, out, errors = self.run_left_half_detector()
        self.assertEqual(status, 0, errors)
        self.assertStartsWith(out.splitlines()[-1], "3 objects on 3 images, 2 unreadable: ")
        self.assertRegex(errors, "line.png is unreadable .2000x1 pixels are too elongated")

    def test_all_images_unreadable_is_an_error(self) -> None:
        (self.images / "sub/0.png").write_bytes(b"")
        (self.images / "turned.jpg").write_bytes(b"")
        status, _, errors = self.run_left_half_detector()
        self.assertEqual(status, 2)
        self.assertRegex(errors, "error: none of the 3 images in --images .* is readable")

    def test_class_names_may_be_given_for_weights_without_them(self) -> None:
        self.write_weights({})
        self.assert_rejected("model_final.pth hold no class names, .* give --class-names A,B,C")
        status, _, errors = self.run_left_half_detector("--class-names", "cow, pig")
        self.assertEqual(status, 0, errors)
        results = json.loads((self.output / "predictions.json").read_text(encoding="utf-8"))
        self.assertEqual(results[0]["category_name"], "pig")

    @parameterized.parameters(
        (("--score", "2"), "--score is 2.0; it must be in .0, 1."),
        (("--score", "nan"), "--score is nan; it must be in .0, 1."),
        (("--class-names", "dog,cat"), "--class-names is dog,cat, but .* trained on cat,dog: omit"),
        (("--weights", "absent.pth"), "absent.pth does not exist"),
        (("--weights", "zoo.pkl"), "--weights is zoo.pkl; expected a .pth file"),
        (("--weights", "http://x/y.pth"), "expected a .pth file on this machine"),
        (("--config-file", "absent.yaml"), "absent.yaml holds no checkpoint: .* --weights"),
        (("--images", "absent"), "absent is not a folder"),
        (("FOO.BAR", "1"), "KEY VALUE pairs: Non-existent key: FOO.BAR"),
        ((), "model_final.pth do not have detectron2's names"),
    )
    def test_rejects_invalid_flags(self, flags: tuple[str, ...], message: str) -> None:
        self.assert_rejected(message, *flags)

    def test_rejects_folders_that_cannot_be_used(self) -> None:
        empty = self.create_tempdir().full_path
        self.assert_rejected("contains no images", "--images", empty)
        for output in (self.images, self.images / "new"):
            self.assert_rejected("is inside --images", "--output", str(output))
        self.assert_rejected("is not an empty folder", "--output", str(self.folder / "run"))
        self.assert_rejected("is not an empty folder", "--output", str(self.config))

    def test_rejects_a_run_without_checkpoints(self) -> None:
        (self.folder / "run/last_checkpoint").unlink()
        self.assert_rejected("holds no checkpoint: give the detector with --weights")
        (self.folder / "run/last_checkpoint").touch()
        self.assert_rejected(
            "last_checkpoint is empty or unreadable: write the name of a checkpoint"
        )


if __name__ == "__main__":
    absltest.main()
