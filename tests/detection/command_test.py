"""Tests of jigclu.detection.command: small runs on generated data, and user errors."""

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
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jigclu.detection import command
from jigclu.models.encoder import create_encoder
from jigclu.tasks.export_formats import FORMATS
from tests.folder_case import FolderTestCase

CONFIGS = Path(__file__).parents[2] / "detection" / "configs"
# A ResNet-18 on images of 64 pixels in one process, with few boxes.
SMALL = (
    "MODEL.RESNETS.DEPTH 18 MODEL.DEVICE cpu "
    "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TRAIN 96 "
    "DATALOADER.NUM_WORKERS 0 TEST.PRECISE_BN.NUM_ITER 1 MODEL.RPN.POST_NMS_TOPK_TEST 20 "
    "MODEL.RPN.POST_NMS_TOPK_TRAIN 50"
)
SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.WARMUP_ITERS 1"
_XML = """<annotation><size><width>64</width><height>48</height></size>
<object><name>{}</name><difficult>0</difficult><truncated>0</truncated><pose>x</pose>
<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


def _write_coco(folder: Path) -> None:
    """Writes 4 images of 64x48 pixels and boxes.json with one box per image."""
    images, annotations = [], []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": 1 + number % 2}
            | {"bbox": [8, 8, 32, 22], "area": 704, "iscrowd": 0}
        )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")


def _write_voc(folder: Path) -> None:
    """Writes 2 images of 64x48 pixels with one box each as the split train."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("cat", "dog")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"JPEGImages/{number}.jpg")
        (folder / f"Annotations/{number}.xml").write_text(_XML.format(name), encoding="utf-8")
    (folder / "ImageSets/Main/train.txt").write_text("0\n1\n", encoding="utf-8")


class CommandTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.output = self.folder / "run"
        _write_coco(self.folder)
        known = set(DatasetCatalog.list())
        self.addCleanup(self._forget, known)

    def _forget(self, known: set[str]) -> None:
        for name in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)

    def run_command(self, *arguments: str, config: str = "R50-JigClu") -> tuple[int, str, str]:
        """Returns the exit status, standard output and standard error."""
        self._forget(set(DatasetCatalog.list()) - {"mine"})
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = command.main(["--config-file", str(CONFIGS / f"{config}.yaml"), *arguments])
        return status, out.getvalue(), errors.getvalue()

    def on_coco(self, *arguments: str, pairs: tuple[str, ...] = ()) -> tuple[int, str, str]:
        data = ("--coco", "mine", str(self.folder), str(self.folder / "boxes.json"))
        flags = (*data, "--train-data", "mine", "--test-data", "mine", *arguments)
        defaults = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", str(self.output), *SMALL.split())
        return self.run_command(*flags, *defaults, *pairs)

    def assert_rejected(self, message: str, *arguments: str, pairs: tuple[str, ...] = ()) -> None:
        status, _, errors = self.on_coco(*arguments, pairs=pairs)
        self.assertEqual(status, 2)
        self.assertRegex(errors, f"^error: .*{message}")
        self.assertLen(errors.splitlines(), 1)
        self.assertFalse((self.output / "last_checkpoint").exists())

    def metrics(self, folder: Path | None = None) -> list[dict[str, float]]:
        text = ((folder or self.output) / "metrics.json").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

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
            for again in (["--eval-only"], ["--resume", *short]):
                status, _, errors = self.on_coco(*again, pairs=(*weights, *longer))
                self.assertEqual(status, 2)
                message = f"trained on the classes cat, dog, but the data have {', '.join(names)}"
                self.assertIn(message, errors)

        contents["categories"].append({"id": 3, "name": "pig"})
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        for flags in (("--eval-only",), ("--eval-only", "--resume"), ("--resume", *short)):
            status, _, errors = self.on_coco(*flags, pairs=(*weights, *longer))
            self.assertEqual(status, 2)
            self.assertIn("model_final.pth have 2 classes, but the data have 3", errors)

    def test_pictures_show_the_last_iteration(self) -> None:
        short = ("--images-per-batch", "2", "--schedule-as-given")
        status, _, errors = self.on_coco(*short, pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        events = EventAccumulator(str(self.output), size_guidance={"images": 0}).Reload()
        (picture,) = events.Images("predictions/0")
        self.assertEqual((picture.step, picture.width, picture.height), (2, 64, 48))
        log = (self.output / "log.txt").read_text(encoding="utf-8")
        self.assertIn(f"Predictions on 4 images: {self.output / 'predictions'}", log)

        # A finished run that is resumed is evaluated and drawn again without training.
        shutil.rmtree(self.output / "predictions")
        status, _, errors = self.on_coco(*short, "--resume", pairs=tuple(SHORT.split()))
        self.assertEqual(status, 0, errors)
        self.assertLen(list((self.output / "predictions").glob("*.png")), 4)

    def test_failed_training_draws_nothing(self) -> None:
        diverging = (*SHORT.split(), "SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "20")
        with self.assertRaises(FloatingPointError):
            self.on_coco("--images-per-batch", "2", "--schedule-as-given", pairs=diverging)
        self.assertFalse((self.output / "predictions").exists())

    def test_trains_on_voc_from_exported_weights(self) -> None:
        _write_voc(self.folder / "voc")
        weights = self.folder / "weights.pth"
        weights.write_bytes(FORMATS["detectron2"].serialize(create_encoder("resnet18", False), 64))
        status, out, errors = self.run_command(
            *("--voc", "mine", str(self.folder / "voc"), "train", "--class-names", "cat, dog"),
            *("--train-data", "mine", "--test-data", "mine"),
            *("--images-per-batch", "1", "--schedule-as-given", "OUTPUT_DIR", str(self.output)),
            *(*SMALL.split(), *SHORT.split(), "MODEL.WEIGHTS", str(weights)),
            config="voc-R50-JigClu",
        )
        self.assertEqual(status, 0, errors)
        self.assertIn("| SOLVER.IMS_PER_BATCH | 8 | 1 |", out)
        self.assertBetween(self.metrics()[-1]["bbox/AP50"], 0, 100)

    def test_images_per_batch_rescales_the_published_schedule(self) -> None:
        args = command.argument_parser().parse_args(
            ["--config-file", str(CONFIGS / "R50-JigClu.yaml"), "--images-per-batch", "4"]
        )
        with contextlib.redirect_stdout(io.StringIO()):
            solver = command.configuration(args).SOLVER
        self.assertEqual((solver.IMS_PER_BATCH, solver.BASE_LR), (4, 0.005))
        self.assertEqual((solver.MAX_ITER, solver.STEPS), (360_000, (240_000, 320_000)))
        self.assertEqual(solver.WARMUP_ITERS, 2000)

    @parameterized.parameters(
        ("SOLVER.MAX_ITER 100", "SOLVER.MAX_ITER 100 .expected 180000. does not match"),
        ("SOLVER.IMS_PER_BATCH 4", "SOLVER.BASE_LR 0.01 .expected 0.005."),
        ("FOO.BAR 1", "KEY VALUE pairs: Non-existent key: FOO.BAR"),
        ("OUTPUT_DIR", "KEY VALUE pairs: Override list has odd length"),
        ("SOLVER.REFERENCE_WORLD_SIZE 4", "SOLVER.REFERENCE_WORLD_SIZE is 4, which would"),
        ("SOLVER.AMP.ENABLED True", "SOLVER.AMP.ENABLED is True, which needs a GPU"),
        ("TEST.AUG.ENABLED True", "TEST.AUG.ENABLED is True, but"),
        ("MODEL.DEVICE gpu", "MODEL.DEVICE is 'gpu'; expected cuda or cpu"),
        ("MODEL.RESNETS.NORM syncbn", "detectron2 cannot build this detector .*syncbn"),
        ("MODEL.FPN.NORM SyncBM", "detectron2 cannot build this detector .*SyncBM"),
        ("MODEL.ROI_HEADS.NAME Heads", "detectron2 cannot build this detector .*Heads"),
        ("MODEL.ROI_BOX_HEAD.NAME Head", "detectron2 cannot build this detector .*Head"),
        ("DATASETS.TEST ()", "DATASETS.TRAIN or DATASETS.TEST is empty"),
        ("DATASETS.TRAIN ()", "DATASETS.TRAIN or DATASETS.TEST is empty"),
        ("OUTPUT_DIR /dev/null", "OUTPUT_DIR /dev/null is not writable .File exists"),
        ("MODEL.ROI_HEADS.NUM_CLASSES 7", "NUM_CLASSES is 7, but the data have 2 classes"),
        ("MODEL.WEIGHTS x.pkl", "x.pkl are or may be a pickle"),
        ("DATASETS.TEST ('other',)", "data set other is unknown"),
    )
    def test_rejects_invalid_pairs(self, pair: str, message: str) -> None:
        self.assert_rejected(message, pairs=tuple(pair.split()))

    @parameterized.parameters(
        (("--num-gpus", "99"), "--num-gpus is 99, but this machine has"),
        (("--num-gpus", "-1"), "--num-gpus is -1, but this machine has"),
        (("--num-machines", "2"), "several processes need one GPU each"),
        (("--num-machines", "2", "--num-gpus", "0"), "several processes need one GPU each"),
        (("--machine-rank", "1"), "--machine-rank is 1; .* --num-machines, which is 1"),
        (
            ("--images-per-batch", "8", "--schedule-as-given", "SOLVER.MAX_ITER", "0"),
            "is 0; it must",
        ),
        (("--resume",), "--resume: .* holds no checkpoint"),
        (("--eval-only",), "--eval-only needs MODEL.WEIGHTS"),
        (("--images-per-batch", "0"), "--images-per-batch is 0"),
        (("--coco", "coco_2017_val", "a", "b"), "coco_2017_val is registered already"),
        (("--coco", "mine", "a", "b"), "data set mine is registered already"),
        (("--voc", "v", "a", "b"), "give --class-names"),
    )
    def test_rejects_invalid_flags(self, flags: tuple[str, ...], message: str) -> None:
        self.assert_rejected(message, *flags)

    def test_rejects_weights_of_another_depth(self) -> None:
        weights = self.folder / "weights.pth"
        weights.write_bytes(FORMATS["detectron2"].serialize(create_encoder("resnet34", False), 64))
        self.assert_rejected(
            "hold a ResNet-34 .*; expected a ResNet-18", pairs=("MODEL.WEIGHTS", str(weights))
        )

    @parameterized.parameters(
        ("MODEL.RESNETS.STEM_OUT_CHANNELS 32", "res2.0.conv1.weight, "),
        ("MODEL.RESNETS.NORM GN", "res2.0.conv1.norm.running_mean, "),
    )
    def test_rejects_weights_that_detectron2_would_load_only_in_part(
        self, pairs: str, message: str
    ) -> None:
        weights = self.folder / "weights.pth"
        weights.write_bytes(FORMATS["detectron2"].serialize(create_encoder("resnet18", False), 64))
        self.assert_rejected(
            f"weights.pth would be loaded only in part, because .*{message}",
            pairs=("MODEL.WEIGHTS", str(weights), *pairs.split()),
        )

    def test_reads_the_file_of_the_published_conversion(self) -> None:
        data = io.BytesIO(FORMATS["detectron2"].serialize(create_encoder("resnet18", False), 64))
        weights = self.folder / "jigclu_det.pth"
        tensors = torch.load(data, weights_only=True)["model"]
        torch.save(tensors, weights, _use_new_zipfile_serialization=False)
        with mock.patch.object(command, "launch") as launch:
            status, _, errors = self.on_coco(pairs=("MODEL.WEIGHTS", str(weights)))
        self.assertEqual(status, 0, errors)
        launch.assert_called_once()

    def test_rejects_c4_detectors_of_basic_blocks(self) -> None:
        data = ("--coco", "mine", str(self.folder), str(self.folder / "boxes.json"))
        flags = (*data, "--train-data", "mine", "--test-data", "mine")
        pairs = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", str(self.output), *SMALL.split())
        status, _, errors = self.run_command(*flags, *pairs, config="R50-C4-JigClu")
        self.assertEqual(status, 2)
        self.assertIn("MODEL.RESNETS.DEPTH is 18, but detectron2 builds C4 detectors", errors)

    def test_rejects_masks_that_the_data_do_not_have(self) -> None:
        self.assert_rejected(
            "annotation 1 in .* has no segmentation, but MODEL.MASK_ON is True",
            pairs=("MODEL.MASK_ON", "True"),
        )

    def test_trains_and_evaluates_masks_also_on_images_without_boxes(self) -> None:
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        del contents["annotations"][3:]
        for annotation in contents["annotations"]:
            annotation["segmentation"] = [[8, 8, 40, 8, 40, 30]]
        contents["annotations"].append(
            contents["annotations"][0]
            | {"id": 9, "iscrowd": 1, "segmentation": {"counts": [3072], "size": [48, 64]}}
        )
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        flags = ("--images-per-batch", "2", "--schedule-as-given", "--keep-empty-images")
        status, out, errors = self.on_coco(*flags, pairs=(*SHORT.split(), "MODEL.MASK_ON", "True"))
        self.assertEqual(status, 0, errors)
        self.assertIn("mine: 4 images, 4 boxes; training leaves out 1 crowds", out)
        self.assertBetween(self.metrics()[-1]["segm/AP50"], 0, 100)

    def test_rejects_an_empty_last_checkpoint(self) -> None:
        self.output.mkdir()
        (self.output / "last_checkpoint").touch()
        status, _, errors = self.on_coco("--resume")
        self.assertEqual(status, 2)
        self.assertRegex(errors, "^error: --resume: .*last_checkpoint is empty: write the name")
        self.assertLen(errors.splitlines(), 1)

    def test_finds_truncated_images_unless_only_headers_are_read(self) -> None:
        path = self.folder / "2.png"
        Image.open(path).save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:-200])
        self.assert_rejected("2.png .*cannot be decoded")
        self.assert_rejected("holds no checkpoint", "--headers-only", "--resume")

    def test_images_without_boxes_are_counted_and_kept_on_request(self) -> None:
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        del contents["annotations"][2:]
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")
        short = ("--images-per-batch", "2", "--schedule-as-given")
        for flags, message, trained in (
            ((), "; training leaves out 2 images without boxes", 2),
            (("--keep-empty-images",), "\n", 4),
        ):
            with mock.patch.object(command, "launch") as launch:
                status, out, errors = self.on_coco(*short, *flags, pairs=tuple(SHORT.split()))
            self.assertEqual(status, 0, errors)
            self.assertIn(f"mine: 4 images, 2 boxes{message}", out)
            cfg, *_ = launch.call_args.kwargs["args"]
            records = get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            )
            self.assertLen(records, trained)

    def test_rejects_a_missing_image(self) -> None:
        (self.folder / "2.png").unlink()
        self.assert_rejected("data set mine: 2.png is not in")

    @mock.patch.object(torch.cuda, "is_available", return_value=True)
    @mock.patch.object(torch.cuda, "device_count", return_value=4)
    def test_several_machines_need_an_address(self, *mocks: mock.Mock) -> None:
        del mocks
        gpu = ("MODEL.DEVICE", "cuda")
        several = ("--num-machines", "2", "--num-gpus", "4")
        self.assert_rejected("--num-machines is 2, .*the same --dist-url", *several, pairs=gpu)
        with mock.patch.object(command, "launch") as launch:
            address = ("--dist-url", "tcp://10.0.0.1:2000", "--machine-rank", "1")
            status, _, errors = self.on_coco(*several, *address, pairs=gpu)
        self.assertEqual(status, 0, errors)
        self.assertEqual(launch.call_args.args[1], 4)
        expected = {"num_machines": 2, "machine_rank": 1, "dist_url": "tcp://10.0.0.1:2000"}
        self.assertEqual({key: launch.call_args.kwargs[key] for key in expected}, expected)

    @mock.patch.object(torch.cuda, "is_available", return_value=True)
    @mock.patch.object(torch.cuda, "device_count", return_value=4)
    def test_only_training_needs_a_batch_that_gpus_share_evenly(self, *mocks: mock.Mock) -> None:
        del mocks
        gpus = ("--num-gpus", "3")
        self.assert_rejected(
            "is 8, which is not a multiple of the 3 processes",
            *gpus,
            pairs=("MODEL.DEVICE", "cuda"),
        )
        self.assert_rejected(
            "--eval-only needs MODEL.WEIGHTS", *gpus, "--eval-only", pairs=("MODEL.DEVICE", "cuda")
        )

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
