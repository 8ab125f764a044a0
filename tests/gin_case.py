"""A test case that loads gin files with small data in place of their own."""

import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torchvision
from absl.testing import parameterized
from PIL import Image

from jigclu import config
from jigclu.config.gin_files import described_bindings
from jigclu.tasks.benchmark.task import BenchmarkTask
from jigclu.tasks.compare import CompareTask
from jigclu.tasks.export import ExportTask
from jigclu.tasks.features import FeaturesTask
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.knn import KnnTask
from jigclu.tasks.linear import LinearTask
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.report import ReportTask
from jigclu.tasks.reproduce import ReproduceTask
from jigclu.tasks.segment import SegmentTask

FILES = sorted(str(path.relative_to(config.ROOT)) for path in config.ROOT.glob("gin/**/*.gin"))
RUN_FILES = [file for file in FILES if not file.startswith("gin/base/")]
PROBE, ONLINE_PROBE = "gin/base/probe.gin", "gin/base/online_probe.gin"
# The task of a file, and the bindings that its user must add, by the base that it includes.
TASKS = {
    "gin/benchmark.gin": (BenchmarkTask, ()),
    "gin/base/pretrain.gin": (PretrainTask, ()),
    "gin/base/finetune.gin": (FinetuneTask, ("finetune.init_from",)),
    "gin/base/segment.gin": (SegmentTask, ("segment.init_from",)),
    "gin/base/export.gin": (ExportTask, ()),
    "gin/features.gin": (FeaturesTask, ("features.init_from",)),
    "gin/pack.gin": (PackTask, ()),
    "gin/report.gin": (ReportTask, ()),
    "gin/base/comparison.gin": (CompareTask, ()),
    "gin/results/supervised_tiny.gin": (FinetuneTask, ()),
    "gin/base/linear.gin": (LinearTask, ("linear.init_from",)),
    "gin/knn.gin": (KnnTask, ("knn.init_from",)),
}
INCLUDE = re.compile(r"^include '(.+)'$")


def all_includes(file: str) -> list[str]:
    """Returns the files that a file includes, and those that they include."""
    lines = (config.ROOT / file).read_text().splitlines()
    direct = [match[1] for match in map(INCLUDE.match, lines) if match]
    return [other for include in direct for other in (*all_includes(include), include)]


def expected_task(file: str) -> tuple[type, tuple[str, ...]]:
    """Returns the class of a file's task, and the names that its user must bind."""
    known = (TASKS[base] for base in TASKS if base in (file, *all_includes(file)))
    return next(known, (ReproduceTask, ()))


def write_masked_tree(folders: Path, voc: Path) -> None:
    """Writes a list of one image per split with its mask, in both layouts, as empty files."""
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (lists, voc / "JPEGImages", voc / "SegmentationClass"):
        folder.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text(f"{split}_0\n")
        (voc / "JPEGImages" / f"{split}_0.jpg").touch()
        (voc / "SegmentationClass" / f"{split}_0.png").touch()
        for folder in (folders / "images" / split, folders / "masks" / split):
            folder.mkdir(parents=True)
            (folder / "0.png").touch()


class FakeCifar:
    """Stands in for the data set that torchvision would download."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.data = np.zeros((300, 32, 32, 3), np.uint8)
        self.targets = [index % 10 for index in range(300)]
        self.classes = [str(index) for index in range(10)]


class GinTestCase(parameterized.TestCase):
    """A test case with a folder of images, lists and masks."""

    root: Path

    @classmethod
    def setUpClass(cls) -> None:
        """Creates image files, all but one empty: enough for a batch from 1% of each class."""
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.root = Path(temporary.name)
        for folder, images in (("train/a", 3200), ("train/b", 3200), ("val/a", 1), ("val/b", 1)):
            (cls.root / folder).mkdir(parents=True)
            for number in range(images):
                (cls.root / folder / f"{number}.png").touch()
        Image.new("RGB", (64, 64)).save(cls.root / "train" / "a" / "0.png")
        write_masked_tree(cls.root / "masked", cls.root / "VOC2012")
        names = [f"{label}/{number}.png\n" for label in "ab" for number in range(150)]
        (cls.root / "list.txt").write_text("".join(names))

    def load(self, file: str, *bindings: str, more: tuple[str, ...] = ()) -> config.Configuration:
        """Loads a file with the tree of images in place of its data."""
        root = self.root
        places = {
            "ImageList.path": root / "list.txt",
            "ListedSubset.path": root / "list.txt",
        }
        folders = {
            "ImageList.root": root / "train",
            "VocSegmentation.root": root / "VOC2012",
            "SegmentationFolders.root": root / "masked",
        }
        bound = {name for part in (*all_includes(file), file) for name in described_bindings(part)}
        data = next((path for name, path in folders.items() if name in bound), root)
        places |= {"DATA": data}
        replaced = [f"{name}={str(path)!r}" for name, path in places.items() if name in bound]
        if not bindings:
            replaced += [f"{name}=None" for name in expected_task(file)[1]]
        with (
            mock.patch.object(torchvision.datasets, "CIFAR10", FakeCifar),
            mock.patch.object(torchvision.datasets, "CIFAR100", FakeCifar),
        ):
            return config.load([file, *more], [*bindings, *replaced])
