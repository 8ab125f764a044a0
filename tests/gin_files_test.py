"""Every gin file loads, and every binding in it takes effect."""

import dataclasses
import re
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torchvision
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu import config
from jigclu.config.gin_files import described_bindings
from jigclu.config.sizes import DERIVED
from jigclu.methods.jigsaw import Jigsaw
from jigclu.methods.simclr import SimClr
from jigclu.methods.two_views import TwoViews
from jigclu.ops import optim, schedules
from jigclu.ops.augment import ColorAugmentation
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
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.probe_evaluator import ProbeEvaluator
from jigclu.training.settings import Schedule

FOLDER = config.ROOT / "gin"
FILES = sorted(str(path.relative_to(config.ROOT)) for path in FOLDER.rglob("*.gin"))
# No run file includes it: see test_linear_probe_beside_knn.
PROBE = "gin/base/probe.gin"
ONLINE_PROBE = "gin/base/online_probe.gin"
DECODING = "gin/base/decoding.gin"
RUN_FILES = [file for file in FILES if not file.startswith("gin/base/")]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
    "gin/base/comparison_tiny.gin": (CompareTask, ()),
    "gin/results/supervised_tiny.gin": (FinetuneTask, ()),
    "gin/base/linear.gin": (LinearTask, ("linear.init_from",)),
    "gin/knn.gin": (KnnTask, ("knn.init_from",)),
}
# Bindings of included files whose reader a file replaces.
REPLACED = {"gin/results/supervised_tiny.gin": ["step_decay.factor", "step_decay.milestones"]}
# Read by the rules of gin/pretrain_folder.gin, or for folders without evaluation images.
READ_BY_RULES = ("DATA", "HeldOut.source", "HeldOut.fraction", "HeldOut.seed", "HeldOut.part")
BINDING = re.compile(r"^([\w./]+) = ")
INCLUDE = re.compile(r"^include '(.+)'$")


def includes_of(file: str) -> list[str]:
    """Returns the files that a file includes, and those that they include."""
    lines = (config.ROOT / file).read_text().splitlines()
    direct = [match[1] for match in map(INCLUDE.match, lines) if match]
    return [other for include in direct for other in (*includes_of(include), include)]


def task_of(file: str) -> tuple[type, tuple[str, ...]]:
    """Returns the class of a file's task, and the names that its user must bind."""
    known = (TASKS[base] for base in TASKS if base in (file, *includes_of(file)))
    return next(known, (ReproduceTask, ()))


def knn_of(task: object) -> KnnEvaluator:
    """Returns the only evaluator of pre-training."""
    assert isinstance(task, PretrainTask)
    (evaluator,) = task.evaluators
    assert isinstance(evaluator, KnnEvaluator)
    return evaluator


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


class GinFilesTest(parameterized.TestCase):
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
        bound = {name for part in (*includes_of(file), file) for name in described_bindings(part)}
        data = next((path for name, path in folders.items() if name in bound), root)
        places |= {"DATA": data}
        replaced = [f"{name}={str(path)!r}" for name, path in places.items() if name in bound]
        if not bindings:
            replaced += [f"{name}=None" for name in task_of(file)[1]]
        with (
            mock.patch.object(torchvision.datasets, "CIFAR10", FakeCifar),
            mock.patch.object(torchvision.datasets, "CIFAR100", FakeCifar),
        ):
            return config.load([file, *more], [*bindings, *replaced])

    def test_all_files_are_reached(self) -> None:
        reached = {include for file in RUN_FILES for include in includes_of(file)}
        self.assertCountEqual(reached | {*RUN_FILES, PROBE, ONLINE_PROBE, DECODING}, FILES)

    @parameterized.parameters(*RUN_FILES)
    def test_every_binding_takes_effect(self, file: str) -> None:
        configuration = self.load(file)
        self.assertEqual(configuration.unused, REPLACED.get(file, []))
        self.assertIsInstance(configuration.task, task_of(file)[0])
        lines = map(BINDING.match, configuration.operative.splitlines())
        operative = {match[1] for match in lines if match}
        operative |= {name.split("/")[-1] for name in operative}
        if not operative.isdisjoint(DERIVED):
            operative.add("SIZE")
        for part in (*includes_of(file), file):
            own = set(described_bindings(part))
            self.assertNotEmpty(own)
            own -= set(configuration.unused)
            if part == "gin/pretrain_folder.gin":
                own = {name for name in own if name.split("/")[-1] not in READ_BY_RULES}
            self.assertContainsSubset(own, operative, part)

    @parameterized.parameters(
        "gin/reproduce_r50.gin", "gin/reproduce_tiny.gin", "gin/reproduce_tiny_cpu.gin"
    )
    def test_every_stage_loads(self, file: str) -> None:
        task = self.load(file).task
        assert isinstance(task, ReproduceTask)
        names = [name for name, _, _ in task.stages]
        scored = [name for name in names if not name.endswith("_untrained")]
        self.assertEqual(scored, ["pretrain", "knn", "linear", "semi_1pct", "semi_10pct", "export"])
        for name, stage_file, bindings in task.stages:
            own = [text for text in bindings if not text.startswith("DATA=")]
            stage = self.load(stage_file, f"SIZE={task.size}", *own)
            if name.endswith("_untrained"):
                self.assertIn("init_from = None", stage.resolved)
            else:
                self.assertEqual("{pretrained}" in stage.resolved, name != "pretrain")

    @parameterized.parameters(
        ("compare_tiny", ()), ("ablation_tiny", ("RATES", "LARS_RATES", "ADAMW_RATES"))
    )
    def test_every_training_of_a_comparison_loads(self, name: str, rates: tuple[str, ...]) -> None:
        data = self.image_folder(300)
        bindings = [f"DATA='{data}'", "compare.scorings=()"]
        # One of three, which are alike.
        bindings += [f"{macro}=(('pretrain.learning_rate=0.03',),)" for macro in rates]
        config.load([f"gin/results/{name}.gin"], bindings).check(data / "none")

    def test_every_scoring_of_a_comparison_loads(self) -> None:
        data = self.image_folder(3200)  # 1% of the labels are a batch.
        for folder in ("train", "trainannot", "val", "valannot"):
            (data / "camvid" / folder).mkdir(parents=True)
            for number in range(8):
                Image.new("L", (8, 8), number).save(data / "camvid" / folder / f"{number}.png")
        method = "('jigclu', 'gin/results/jigclu_tiny.gin', (), (('pretrain.learning_rate=0.1',),))"
        bindings = [f"DATA='{data}'", f"CAMVID='{data}/camvid'", f"compare.methods=({method},)"]
        config.load(["gin/results/compare_tiny_dense.gin"], bindings).check(data / "none")

    def image_folder(self, images: int) -> Path:
        """Returns a folder with two classes of empty files, of which some are for training."""
        data = Path(self.create_tempdir().full_path)
        for folder, count in (("train/a", images), ("train/b", images), ("val/a", 1), ("val/b", 1)):
            (data / folder).mkdir(parents=True)
            for number in range(count):
                (data / folder / f"{number}.png").touch()
        return data

    @parameterized.parameters(*RUN_FILES)
    def test_files_bind_only_what_differs_from_their_includes(self, file: str) -> None:
        inherited: dict[str, str] = {}
        for part in includes_of(file):
            inherited |= {name: value for name, (value, _) in described_bindings(part).items()}
        own = described_bindings(file)
        same = [name for name, (value, _) in own.items() if inherited.get(name) == value]
        self.assertEmpty(same)

    @parameterized.parameters(*[file for file in FILES if file.startswith("gin/base/")])
    def test_base_values_have_unit_and_source(self, file: str) -> None:
        for name, (value, comment) in described_bindings(file).items():
            # References and macros are explained where their targets are bound.
            if not value.startswith(("@", "%")) and not name.isupper():
                self.assertIsNotNone(comment, name)

    @parameterized.parameters(*RUN_FILES)
    def test_files_open_with_a_description_and_a_command(self, file: str) -> None:
        head = (config.ROOT / file).read_text().split("\n\n")[0]
        self.assertTrue(all(line.startswith("#") for line in head.splitlines()))
        self.assertRegex(head, rf"--gin_file={file}|GIN_FILE={file}|make demo")

    def test_published_recipe(self) -> None:
        task = self.load("gin/pretrain_r50.gin").task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        published = {
            "grid": 2,
            "cross_ratio": 0.3,
            "patch_size": 112,
            "smaller_patches": (),
            "crop_scale": (0.2, 1.0),
            "siblings": "anywhere",
            "queue_size": 0,
            "single_every": 0,
            "projection_layers": 2,
            "projection_norm": False,
            "pooling_map": 8,
            "embedding_channels": 128,
            "temperature": 0.3,
            "base_temperature": 0.07,
            "clustering_weight": 1.0,
            "location_weight": 1.0,
        }
        for name, value in published.items():
            self.assertEqual(getattr(task.method, name), value, name)
        self.assertSequenceAlmostEqual(task.method.crop_ratio, (3 / 4, 4 / 3))
        assert isinstance(task.method.augmentation, ColorAugmentation)
        self.assertEqual(
            dataclasses.astuple(task.method.augmentation),
            (0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.5, 0.1, 2.0, 0.5, IMAGENET_MEAN, IMAGENET_STD),
        )
        self.assertEqual((task.batch_size, task.micro_batch_size), (256, None))
        self.assertEqual((task.encoder, task.small_stem), ("resnet50", False))
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True),
        )
        self.assertEqual(task.learning_rate, 0.03)
        self.assertEqual(
            task.schedule,
            Schedule(
                epochs=200,
                warmup_epochs=0,
                decay=schedules.CosineDecay(),
                per_epoch=True,
                stop_after_steps=None,
                bad_steps=0,
            ),
        )
        self.assertAlmostEqual(task.schedule.decay(50, 200, 0), 0.5 + 0.5 * 0.5**0.5)
        self.assertEqual(task.compute.precision, "float32")
        self.assertEmpty(task.evaluators)

    @parameterized.parameters(
        ("gin/semi_r50_1pct.gin", 0.02, None),
        ("gin/semi_r50_1pct_intended.gin", 0.02, 5.0),
        ("gin/semi_r50_10pct.gin", 0.01, None),
        ("gin/semi_r50_10pct_intended.gin", 0.01, 0.2),
    )
    def test_published_semi_supervised_recipes(
        self, file: str, learning_rate: float, head_learning_rate: float | None
    ) -> None:
        task = self.load(file).task
        assert isinstance(task, FinetuneTask)
        self.assertEqual(task.learning_rate, learning_rate)
        self.assertEqual(task.head_learning_rate, head_learning_rate)
        self.assertEqual(
            (task.batch_size, task.schedule.epochs, task.evaluate_every), (256, 100, 2)
        )
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=0.0, decay_norms_and_biases=True),
        )
        factors = [task.schedule.decay(epoch, 100, 0) for epoch in (29, 30, 60, 90)]
        self.assertSequenceAlmostEqual(factors, [1.0, 0.1, 0.01, 0.001])
        self.assertLen(task.source, 300)

    def test_moco_protocol_of_segmentation(self) -> None:
        task = self.load("gin/segment_voc_fcn.gin").task
        assert isinstance(task, SegmentTask)
        self.assertEqual((task.head, task.dilated_stages, task.eval_resize), ("fcn", 1, None))
        self.assertEqual((task.batch_size, task.train_size, task.scale), (16, 513, (0.5, 2.0)))
        self.assertEqual(
            task.optimizer,
            optim.SGD(momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True),
        )
        self.assertEqual(task.learning_rate, 0.003)
        steps = 1464 // 16
        self.assertEqual(round(task.schedule.total_steps(steps), -3), 30_000)
        for share, factor in ((0.69, 1.0), (0.71, 0.1), (0.89, 0.1), (0.91, 0.01)):
            step = round(share * task.schedule.total_steps(steps))
            self.assertAlmostEqual(task.schedule.factor(step, steps), factor)

    def test_knn_during_training_as_the_file_describes(self) -> None:
        text = (FOLDER / "pretrain_r50.gin").read_text().split("# kNN accuracy every 10 epochs")[1]
        text = " ".join(line.strip("# ") for line in text.split("\n\n")[0].splitlines())
        (file,) = re.findall(r"--gin_file=(\S+)", text)
        texts = re.findall(r"(?<=\s)[\w./]+=[^\s]+(?=\s|$)", text)
        configuration = self.load("gin/pretrain_r50.gin", *texts, more=(file,))
        self.assertEmpty(configuration.unused)
        evaluator = knn_of(configuration.task)
        self.assertEqual(evaluator.every, 10)
        self.assertIn("/train/a/0.png", evaluator.bank.name(0))
        self.assertIn("/val/a/0.png", evaluator.queries.name(0))
        transform = evaluator.eval_transform
        self.assertEqual((transform.resize, transform.crop), (256, 224))
        self.assertEqual((transform.mean, transform.std), (IMAGENET_MEAN, IMAGENET_STD))

    def test_linear_probe_beside_knn(self) -> None:
        configuration = self.load(
            "gin/pretrain_r18_tinyimagenet.gin",
            "pretrain.evaluators=(@knn_evaluator(), @probe_evaluator())",
            "probe_evaluator.every=50",
            "probe_evaluator.source=@train_split/ImageFolder()",
            "probe_evaluator.val=@val_split/ImageFolder()",
            more=(PROBE,),
        )
        self.assertEmpty(configuration.unused)
        operative = [line.partition(" = ")[0] for line in configuration.resolved.splitlines()]
        self.assertContainsSubset(described_bindings(PROBE), operative)
        assert isinstance(configuration.task, PretrainTask)
        knn, probe = configuration.task.evaluators
        assert isinstance(knn, KnnEvaluator) and isinstance(probe, ProbeEvaluator)
        self.assertEqual((knn.every, probe.every), (10, 50))
        self.assertEqual(knn.eval_transform, probe.eval_transform)
        self.assertIn("/val/a/0.png", probe.val.name(0))

    def test_online_probe_can_be_added_to_a_run_file(self) -> None:
        file = "gin/pretrain_r18_tinyimagenet.gin"
        bound = "pretrain.online_probe=@online_probe()"
        configuration = self.load(file, bound, more=(ONLINE_PROBE,))
        operative = [line.partition(" = ")[0] for line in configuration.resolved.splitlines()]
        self.assertContainsSubset(described_bindings(ONLINE_PROBE), operative)

    def test_simclr_recipe(self) -> None:
        task = self.load(
            "gin/base/simclr.gin",
            "pretrain.source=@UnlabeledImages()",
            f"UnlabeledImages.root={str(self.root / 'train')!r}",
        ).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, SimClr)
        method = task.method
        self.assertEqual((method.view_size, method.crop_scale), (224, (0.08, 1.0)))
        self.assertEqual((method.embedding_channels, method.temperature), (128, 0.1))
        self.assertSequenceAlmostEqual(method.crop_ratio, (3 / 4, 4 / 3))
        # Color jitter of strength 1.
        assert isinstance(method.augmentation, ColorAugmentation)
        self.assertEqual(
            dataclasses.astuple(method.augmentation),
            (0.8, 0.8, 0.8, 0.2, 0.8, 0.2, 0.5, 0.1, 2.0, 0.5, IMAGENET_MEAN, IMAGENET_STD),
        )
        lars = optim.LARS(momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001)
        self.assertEqual((task.optimizer, task.learning_rate), (lars, 0.3))
        self.assertEqual((task.schedule.epochs, task.schedule.warmup_epochs), (100, 10))

    @parameterized.parameters(
        ("moco", 256, 0.03, 200, {"embedding_channels": 128, "temperature": 0.2}),
        ("moco", 256, 0.03, 200, {"queue_size": 65536, "momentum": 0.999}),
        ("simsiam", 512, 0.1, 100, {"embedding_channels": 2048, "prediction_channels": 512}),
        ("byol", 4096, 3.2, 1000, {"hidden_channels": 4096, "embedding_channels": 256}),
        ("byol", 4096, 3.2, 1000, {"momentum": 0.996, "crop_scale": (0.08, 1.0)}),
    )
    def test_recipes_of_baselines(
        self,
        name: str,
        batch_size: int,
        learning_rate: float,
        epochs: int,
        fields: dict[str, object],
    ) -> None:
        task = self.load(
            f"gin/base/{name}.gin",
            "pretrain.source=@UnlabeledImages()",
            f"UnlabeledImages.root={str(self.root / 'train')!r}",
        ).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, TwoViews)
        self.assertEqual(task.method.view_size, 224)
        self.assertEqual(task.batch_size, batch_size)
        self.assertEqual(task.learning_rate, learning_rate)
        self.assertEqual(task.schedule.epochs, epochs)
        self.assertEqual({field: getattr(task.method, field) for field in fields}, fields)

    @parameterized.parameters("moco", "simsiam", "byol")
    def test_queue_and_batch_of_small_baselines_fit(self, name: str) -> None:
        task = self.load(f"gin/pretrain_{name}_r18_tinyimagenet.gin").task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.schedule.epochs), (256, 200))
        task.method.check_run(task.new_encoder(), 200, task.batch_size, 1)

    def test_cifar_is_read_by_its_splits(self) -> None:
        task = self.load("gin/pretrain_r18_cifar10.gin").task
        assert isinstance(task, PretrainTask)
        self.assertLen(task.source, 300)
        self.assertEqual(knn_of(task).queries.name(3), "CIFAR10 val image 3")


if __name__ == "__main__":
    absltest.main()
