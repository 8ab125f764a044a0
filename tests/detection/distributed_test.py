"""Tests that evaluation on two processes counts the predictions of both."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image
from torch import nn

from jigclu.detection import command, flags
from jigclu.detection.trainer import Trainer
from tests.detection.command_case import CommandTestCase
from tests.folder_case import FolderTestCase
from tests.ranks import run_on_ranks

CONFIG = Path(__file__).parents[2] / "detection" / "configs" / "R50-JigClu.yaml"
IMAGES = 5
# Norms that also work on a CPU, and small heads.
SMALL_NORMS = (
    "MODEL.RESNETS.NORM BN MODEL.FPN.NORM BN MODEL.FPN.OUT_CHANNELS 32 "
    "MODEL.ROI_BOX_HEAD.NUM_CONV 0 MODEL.ROI_BOX_HEAD.FC_DIM 64 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64"
)
_XML = """<annotation><size><width>64</width><height>48</height></size><object><name>cat</name>
<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"""


class PerfectDetector(nn.Module):
    """Predicts the annotated boxes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(name)}

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._instances(record["image_id"])} for record in inputs]

    def _instances(self, image: int | str) -> Instances:
        record = self._records[image]
        boxes = [
            BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)
            for box in record["annotations"]
        ]
        return Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(boxes)),
            scores=torch.full((len(boxes),), 0.9),
            pred_classes=torch.tensor([box["category_id"] for box in record["annotations"]]),
        )


def _evaluate(arguments: list[str]) -> int:
    """Runs --eval-only with a perfect detector; returns how many images this rank had."""
    args = flags.argument_parser().parse_args(arguments)
    own_data = flags.own_data(args)
    own_data.register()
    comm.create_local_process_group(comm.get_world_size())
    detector = PerfectDetector("mine")

    def build(cfg: CfgNode) -> nn.Module:
        del cfg
        return detector

    with (
        mock.patch.object(Trainer, "build_model", build),
        mock.patch.object(command, "draw_predictions"),
        mock.patch.object(detector, "forward", wraps=detector.forward) as forward,
    ):
        command._run(command.configuration(args), args, own_data, os.getpid())
    return forward.call_count


class DistributedTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
            (self.folder / name).mkdir(parents=True)
        names = [f"{number}\n" for number in range(IMAGES)]
        (self.folder / "ImageSets/Main/test.txt").write_text("".join(names), encoding="utf-8")
        images, annotations = [], []
        for number in range(IMAGES):
            pixels = np.random.default_rng(number).integers(0, 128, (48, 64, 3), np.uint8)
            # A bright object.
            pixels[8:30, 8:40] += 128
            Image.fromarray(pixels).save(self.folder / f"JPEGImages/{number}.jpg")
            (self.folder / f"Annotations/{number}.xml").write_text(_XML, encoding="utf-8")
            images.append({"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0}
                | {"bbox": [8, 8, 32, 22], "area": 704}
            )
        contents = {"images": images, "annotations": annotations}
        contents["categories"] = [{"id": 1, "name": "cat"}]
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")

    @parameterized.parameters("coco", "voc")
    def test_perfect_predictions_of_two_processes_score_100(self, layout: str) -> None:
        data = {
            "coco": f"--coco mine {self.folder}/JPEGImages {self.folder}/boxes.json",
            "voc": f"--voc mine {self.folder} test --class-names cat",
        }
        arguments = f"--config-file {CONFIG} {data[layout]} --test-data mine --eval-only"
        pairs = f"OUTPUT_DIR {self.folder}/run INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0"
        weights = ["MODEL.WEIGHTS", ""]
        shares = run_on_ranks(_evaluate, 2, [*arguments.split(), *pairs.split(), *weights])
        self.assertEqual(shares, [3, 2])
        (metrics,) = (self.folder / "run/metrics.json").read_text(encoding="utf-8").splitlines()
        for key in ("bbox/AP", "bbox/AP50", "bbox/AP75"):
            self.assertAlmostEqual(json.loads(metrics)[key], 100, msg=key)


class TrainedDetectorTest(CommandTestCase):
    @absltest.skipIf(torch.cuda.is_available(), "detectron2 would use NCCL")
    def test_scores_the_same_on_one_and_two_processes(self) -> None:
        for number in range(4):
            # A bright object.
            pixels = np.array(Image.open(self.folder / f"{number}.png")) // 4
            pixels[8:30, 8:40] += 192
            Image.fromarray(pixels).save(self.folder / f"{number}.png")
        training = "SOLVER.MAX_ITER 40 SOLVER.STEPS () SOLVER.WARMUP_ITERS 1 SOLVER.BASE_LR 0.02"
        batch = ("--images-per-batch", "4", "--schedule-as-given")
        status, _, errors = self.on_coco(*batch, pairs=(*SMALL_NORMS.split(), *training.split()))
        self.assertEqual(status, 0, errors)
        weights = ("MODEL.WEIGHTS", str(self.output / "model_final.pth"))
        scores = []
        for processes in ("1", "2"):
            output = self.folder / f"evaluation_{processes}"
            status, _, errors = self.on_coco(
                *("--eval-only", "--dist-url", "auto", "--num-gpus", processes),
                pairs=(*SMALL_NORMS.split(), *weights, "OUTPUT_DIR", str(output)),
            )
            self.assertEqual(status, 0, errors)
            (metrics,) = self.metrics(output)
            scores.append(metrics)
        self.assertGreater(scores[0]["bbox/AP"], 1)
        self.assertEqual(scores[0], scores[1])
        log = (self.folder / "evaluation_2" / "log.txt.rank1").read_text(encoding="utf-8")
        self.assertIn("Start inference on 2 batches", log)


if __name__ == "__main__":
    absltest.main()
