"""Runs of the command on small generated data sets."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
)
from PIL import Image

from jigclu.detection import command
from jigclu.models.encoder import create_encoder
from jigclu.tasks.export_formats import FORMATS
from tests import samples
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


def write_coco(folder: Path) -> None:
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


def write_voc(folder: Path) -> None:
    """Writes 2 images of 64x48 pixels with one box each as the split train."""
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(("cat", "dog")):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"JPEGImages/{number}.jpg")
        (folder / f"Annotations/{number}.xml").write_text(_XML.format(name), encoding="utf-8")
    (folder / "ImageSets/Main/train.txt").write_text("0\n1\n", encoding="utf-8")


class CommandTestCase(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.output = self.folder / "run"
        write_coco(self.folder)
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

    def on_coco(
        self, *arguments: str, pairs: tuple[str, ...] = (), config: str = "R50-JigClu"
    ) -> tuple[int, str, str]:
        data = ("--coco", "mine", str(self.folder), str(self.folder / "boxes.json"))
        flags = (*data, "--train-data", "mine", "--test-data", "mine", *arguments)
        defaults = ("MODEL.WEIGHTS", "", "OUTPUT_DIR", str(self.output), *SMALL.split())
        return self.run_command(*flags, *defaults, *pairs, config=config)

    def assert_rejected(
        self,
        message: str,
        *arguments: str,
        pairs: tuple[str, ...] = (),
        config: str = "R50-JigClu",
    ) -> None:
        # A test fails instead of training.
        with mock.patch.object(command, "launch"):
            status, _, errors = self.on_coco(*arguments, pairs=pairs, config=config)
        self.assertEqual(status, 2)
        self.assertRegex(errors, f"^error: .*{message}")
        self.assertLen(errors.splitlines(), 1)
        self.assertFalse((self.output / "last_checkpoint").exists())

    def write_weights(self, depth: int = 18) -> str:
        """Writes a random encoder as initial weights of detectors with FPN; returns the path."""
        path = self.folder / "weights.pth"
        encoder = create_encoder(f"resnet{depth}", False)
        path.write_bytes(FORMATS["detectron2"].serialize(encoder, samples.DESCRIPTION))
        return str(path)

    def add_masks(self, *masks: object) -> None:
        """Adds masks to the first annotations and removes the others; a triangle by default."""
        contents = json.loads((self.folder / "boxes.json").read_text(encoding="utf-8"))
        annotations = contents["annotations"]
        masks = masks or ([[8, 8, 40, 8, 40, 30]],) * len(annotations)
        contents["annotations"] = [
            annotation | {"segmentation": mask}
            for annotation, mask in zip(annotations, masks, strict=False)
        ]
        (self.folder / "boxes.json").write_text(json.dumps(contents), encoding="utf-8")

    def metrics(self, folder: Path | None = None) -> list[dict[str, float]]:
        text = ((folder or self.output) / "metrics.json").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
