"""Tests of jigclu.detection.command: small runs on generated data, and invalid configurations."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from detectron2.data import (
    get_detection_dataset_dicts,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jigclu.detection import command, flags
from tests.detection.command_case import CONFIGS, SHORT, SMALL, CommandTestCase, write_voc


def _panels(path: Path) -> list[np.ndarray]:
    """Returns the annotated and the predicted half of a picture, without their titles."""
    pixels = np.asarray(Image.open(path))[-360:]
    return [pixels[:, :480], pixels[:, -480:]]


class CommandTest(CommandTestCase):
    def test_trains_evaluates_draws_and_resumes(self) -> None:
        short = ("--images-per-batch", "2", "--schedule-as-given")
        status, out, errors = self.on_coco(*short, pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        self.assertIn("| SOLVER.BASE_LR | 0.01 | 0.0025 |", out)
        self.assertIn("mine: 4 images, 4 boxes", out)
        losses = [line["total_loss"] for line in self.metrics() if "total_loss" in line]
        self.assertNotEmpty(losses)
        self.assertTrue(np.isfinite(losses).all())
        self.assertBetween(self.metrics()[-1]["bbox/AP50"], 0, 100)
        self.assertLen(list((self.output / "predictions").glob("*.png")), 4)
        final = torch.load(self.output / "model_final.pth", weights_only=True)
        # The head has one output per class and one for the background.
        self.assertLen(final["model"]["roi_heads.box_predictor.cls_score.bias"], 3)
        self.assertEqual(final["iteration"], 1)

        status, _, errors = self.on_coco(*short, pairs=tuple(SHORT.split()))
        self.assertEqual(status, 2)
        self.assertIn("already holds a run: give --resume", errors)
        longer = (*SHORT.split(), "SOLVER.MAX_ITER", "3")
        status, _, errors = self.on_coco(*short, "--resume", pairs=longer)
        self.assertEqual(status, 0, errors)
        final = torch.load(self.output / "model_final.pth", weights_only=True)
        self.assertEqual(final["iteration"], 2)

        weights = ("MODEL.WEIGHTS", str(self.output / "model_final.pth"))
        # Without --train-data the evaluated data determine the width of the head.
        data = ("--coco", "mine", str(self.folder), str(self.folder / "boxes.json"))
        pairs = (*SMALL.split(), *weights, "OUTPUT_DIR", str(self.folder / "evaluation"))
        status, _, errors = self.run_command(
            *data, "--test-data", "mine", "--eval-only", *pairs, config="voc-R50-JigClu"
        )
        self.assertEqual(status, 0, errors)
        self.assertLen(list((self.folder / "evaluation/predictions").glob("*.png")), 4)
        trained = self.metrics()[-1]
        (evaluated,) = self.metrics(self.folder / "evaluation")
        self.assertEqual(
            evaluated, {key: trained[key] for key in trained if "AP" in key} | {"iteration": 3}
        )
        self.assertContainsSubset(("bbox/AP", "bbox/AP50", "bbox/AP75"), evaluated)
        events = EventAccumulator(str(self.folder / "evaluation")).Reload()
        (scalar,) = events.Scalars("bbox/AP50")
        self.assertAlmostEqual(scalar.value, evaluated["bbox/AP50"], places=4)
        expected = ("TEST.EXPECTED_RESULTS", "[['bbox','AP',101.0,0.5]]")
        with self.assertRaises(SystemExit):
            self.on_coco("--eval-only", pairs=(*weights, *expected))

        for pair in ("SOLVER.BASE_LR 0.001", "SOLVER.MOMENTUM 0.5"):
            status, _, errors = self.on_coco(*short, "--resume", pairs=(*longer, *pair.split()))
            self.assertEqual(status, 2)
            self.assertIn(f"--resume: {pair.replace(' ', ' is ')}, but the run was", errors)
        fewer = ("--images-per-batch", "4", "--schedule-as-given", "--resume")
        status, _, errors = self.on_coco(*fewer, pairs=longer)
        self.assertEqual(status, 2)
        self.assertIn("SOLVER.IMS_PER_BATCH is 4, but the run was started with 2", errors)
        status, _, errors = self.on_coco(*short, "--resume", pairs=tuple(SHORT.split()))
        self.assertEqual(status, 2)
        self.assertIn("SOLVER.MAX_ITER is 2, but", errors)

        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        for names in (("dog", "cat"), ("cat", "cow")):
            for category, name in zip(contents["categories"], names, strict=True):
                category["name"] = name
            (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
            for again in (("--eval-only",), ("--resume", *short)):
                status, _, errors = self.on_coco(*again, pairs=(*weights, *longer))
                self.assertEqual(status, 2)
                message = f"trained on the classes cat, dog, but the data have {', '.join(names)}"
                self.assertIn(message, errors)

        contents["categories"].append({"id": 3, "name": "pig"})
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        for whole in (("--eval-only",), ("--eval-only", "--resume"), ("--resume", *short)):
            status, _, errors = self.on_coco(*whole, pairs=(*weights, *longer))
            self.assertEqual(status, 2)
            self.assertIn("model_final.pth have 2 classes, but the data have 3", errors)

    def test_pictures_show_the_last_iteration(self) -> None:
        short = ("--images-per-batch", "2", "--schedule-as-given")
        status, _, errors = self.on_coco(*short, pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        events = EventAccumulator(str(self.output), size_guidance={"images": 0}).Reload()
        (picture,) = events.Images("predictions/1_0")
        # Images of 64x48 pixels are enlarged; annotations and predictions are side by side.
        self.assertEqual((picture.step, picture.width), (2, 480 + 3 + 480))
        likely = _panels(self.output / "predictions/1_0.png")
        log = (self.output / "log.txt").read_text(encoding="utf-8")
        self.assertIn(f"Predictions on 4 images: {self.output / 'predictions'}", log)

        # A finished run that is resumed is evaluated and drawn again without training.
        shutil.rmtree(self.output / "predictions")
        again = (*short, "--resume", "--picture-score", "0")
        status, _, errors = self.on_coco(*again, pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        everything = _panels(self.output / "predictions/1_0.png")
        np.testing.assert_array_equal(everything[0], likely[0])
        self.assertFalse(np.array_equal(everything[1], likely[1]))
        self.assertLen(list((self.output / "predictions").glob("*.png")), 4)

    def test_failed_training_draws_nothing(self) -> None:
        diverging = (*SHORT.split(), "SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "20")
        with self.assertRaises(FloatingPointError):
            self.on_coco("--images-per-batch", "2", "--schedule-as-given", pairs=diverging)
        self.assertFalse((self.output / "predictions").exists())

    def test_trains_on_voc_from_exported_weights(self) -> None:
        write_voc(self.folder / "voc")
        weights = self.write_weights()
        status, out, errors = self.run_command(
            *("--voc", "mine", str(self.folder / "voc"), "train", "--class-names", "cat, dog"),
            *("--train-data", "mine", "--test-data", "mine"),
            *("--images-per-batch", "1", "--schedule-as-given", "OUTPUT_DIR", str(self.output)),
            *(*SMALL.split(), *SHORT.split(), "MODEL.WEIGHTS", weights),
            config="voc-R50-JigClu",
        )
        self.assertEqual(status, 0, errors)
        self.assertIn("| SOLVER.IMS_PER_BATCH | 8 | 1 |", out)
        self.assertBetween(self.metrics()[-1]["bbox/AP50"], 0, 100)

    def test_images_per_batch_rescales_the_published_schedule(self) -> None:
        args = flags.argument_parser().parse_args(
            ["--config-file", str(CONFIGS / "R50-JigClu.yaml"), "--images-per-batch", "4"]
        )
        with contextlib.redirect_stdout(io.StringIO()):
            solver = command.configuration(args).SOLVER
        self.assertEqual((solver.IMS_PER_BATCH, solver.BASE_LR), (4, 0.005))
        self.assertEqual((solver.MAX_ITER, solver.STEPS), (360_000, (240_000, 320_000)))
        self.assertEqual(solver.WARMUP_ITERS, 2000)

    def test_trains_and_evaluates_masks_also_on_images_without_boxes(self) -> None:
        triangle = [[8, 8, 40, 8, 40, 30]]
        self.add_masks(triangle, triangle, triangle)
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        contents["annotations"].append(
            contents["annotations"][0]
            | {"id": 9, "iscrowd": 1, "segmentation": {"counts": [3072], "size": [48, 64]}}
        )
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        short = ("--images-per-batch", "2", "--schedule-as-given", "--keep-empty-images")
        status, out, errors = self.on_coco(
            *short, pairs=tuple(SHORT.split()), config="coco-mask-R50-FPN-1x-MoCo"
        )
        self.assertEqual(status, 0, errors)
        self.assertIn("mine: 4 images, 4 boxes; training leaves out crowds (1)", out)
        log = (self.output / "log.txt").read_text(encoding="utf-8")
        events = EventAccumulator(str(self.output)).Reload()
        for task in ("bbox", "segm"):
            self.assertIn(f"Evaluation results for {task}: \n|", log)
            for name in ("AP", "AP50", "AP75", "AP-cat", "AP-dog"):
                value = self.metrics()[-1][f"{task}/{name}"]
                self.assertBetween(value, 0, 100)
                (scalar,) = events.Scalars(f"{task}/{name}")
                self.assertAlmostEqual(scalar.value, value, places=4)

    def test_trains_masks_that_are_run_length_encodings(self) -> None:
        encoding = {"counts": [400, 20, 28, 20, 2604], "size": [48, 64]}
        self.add_masks(encoding, [[8, 8, 40, 8, 40, 30]], encoding, encoding)
        short = ("--images-per-batch", "4", "--schedule-as-given")
        masks = (*SHORT.split(), "MODEL.MASK_ON", "True")
        status, _, errors = self.on_coco(*short, pairs=masks)
        self.assertEqual(status, 2)
        self.assertIn("INPUT.MASK_FORMAT is polygon: set it to bitmask", errors)
        status, _, errors = self.on_coco(*short, pairs=(*masks, "INPUT.MASK_FORMAT", "bitmask"))
        self.assertEqual(status, 0, errors)
        losses = [line["loss_mask"] for line in self.metrics() if "loss_mask" in line]
        self.assertNotEmpty(losses)
        self.assertTrue(np.isfinite(losses).all())
        self.assertBetween(self.metrics()[-1]["segm/AP50"], 0, 100)

    def test_retinanet_trains_and_evaluates(self) -> None:
        weights = self.write_weights()
        short = ("--images-per-batch", "2", "--schedule-as-given")
        status, out, errors = self.on_coco(
            *short,
            pairs=(*SHORT.split(), "MODEL.WEIGHTS", weights),
            config="coco-RetinaNet-R50-FPN-1x",
        )
        self.assertEqual(status, 0, errors)
        self.assertIn("| SOLVER.BASE_LR | 0.01 | 0.00125 |", out)
        trained = self.metrics()[-1]
        self.assertBetween(trained["bbox/AP50"], 0, 100)
        final = self.output / "model_final.pth"
        tensors = torch.load(final, weights_only=True)["model"]
        # One output for each of two classes and nine anchors.
        self.assertLen(tensors["head.cls_score.bias"], 18)

        pairs = ("MODEL.WEIGHTS", str(final), "OUTPUT_DIR", str(self.folder / "evaluation"))
        status, _, errors = self.on_coco(
            "--eval-only", pairs=pairs, config="coco-RetinaNet-R50-FPN-1x"
        )
        self.assertEqual(status, 0, errors)
        (evaluated,) = self.metrics(self.folder / "evaluation")
        self.assertEqual(evaluated["bbox/AP"], trained["bbox/AP"])
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        contents["categories"].append({"id": 3, "name": "pig"})
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        status, _, errors = self.on_coco(
            "--eval-only", pairs=pairs, config="coco-RetinaNet-R50-FPN-1x"
        )
        self.assertEqual(status, 2)
        self.assertIn("model_final.pth have 2 classes, but the data have 3", errors)

    def test_images_without_boxes_are_counted_and_kept_on_request(self) -> None:
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        del contents["annotations"][2:]
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        short = ("--images-per-batch", "2", "--schedule-as-given")
        for more, message, trained in (
            ((), "; training leaves out images without boxes (2)", 2),
            (("--keep-empty-images",), "\n", 4),
        ):
            with mock.patch.object(command, "launch") as launch:
                status, out, errors = self.on_coco(*short, *more, pairs=tuple(SHORT.split()))
            self.assertEqual(status, 0, errors)
            self.assertIn(f"mine: 4 images, 2 boxes{message}", out)
            cfg, *_ = launch.call_args.kwargs["args"]
            records = get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            )
            self.assertLen(records, trained)

    @parameterized.parameters(
        "MODEL: !!python/object/apply:os.getcwd []",
        "_BASE_: absent.yaml",
        "MODEL: [1",
        "text",
        "",
        "SOLVER: 5",
        "FOO: 1",
        None,
    )
    def test_rejects_invalid_configuration_files(self, text: str | None) -> None:
        path = self.folder / "bad.yaml"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(command.main(["--config-file", str(path)]), 2)
        self.assertRegex(errors.getvalue(), "^error: --config-file .*bad.yaml")
        self.assertLen(errors.getvalue().splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
