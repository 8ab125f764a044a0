"""Tests of comparisons with real trainings."""

import contextlib
import io
import json
from pathlib import Path
from xml.etree import ElementTree

from absl.testing import absltest

from jigclu import config
from jigclu.system import environment
from jigclu.tasks.compare import BUDGETS
from jigclu.training import metrics_file
from jigclu.training.finite import Diverged
from tests.folder_case import FolderTestCase

COMPARE = """
launch.task = @compare()
compare.methods = (
    ('jigclu', '{folder}/jigclu.gin', (), ((), ('pretrain.learning_rate=0.01',))),
    ('simclr', '{folder}/simclr.gin', ('simclr.temperature=0.2',), ((), ('SEED=1',))),
)
compare.reference = 'jigclu'
compare.epochs = 4
compare.budgets = ('images', 'time')
compare.seeds = (0,)
compare.trial_share = 0.25
compare.trial_bindings = (
    'TRAIN=@kept/HeldOut()', 'VAL=@held_out/HeldOut()',
    'HeldOut.source=@train_split/ProceduralImages()', 'HeldOut.fraction=0.5', 'HeldOut.seed=0',
    "kept/HeldOut.part='train'", "held_out/HeldOut.part='held_out'")
compare.data = None
compare.scorings = (('knn', '{folder}/knn.gin', 'knn', None, ()),)
"""
IMAGES = """
include 'gin/base/knn.gin'
TRAIN = @train_split/ProceduralImages()
VAL = @val_split/ProceduralImages()
ProceduralImages.size = %SIZE
ProceduralImages.seed = 0
train_split/ProceduralImages.images = 20
train_split/ProceduralImages.split = 'train'
val_split/ProceduralImages.images = 10
val_split/ProceduralImages.split = 'val'
SIZE = 64
eval_transform.resize = %SIZE
eval_transform.crop = %SIZE
knn_evaluator.bank = %TRAIN
knn_evaluator.queries = %VAL
knn_evaluator.neighbors = 3
compute.device = 'cpu'
compute.precision = 'float32'
loading.workers = 0
"""
METHOD = """
include 'gin/base/{method}.gin'
include '{folder}/images.gin'
pretrain.source = %TRAIN
pretrain.evaluators = (@knn_evaluator(),)
pretrain.seed = %SEED
SEED = 0
pretrain.encoder = 'timm/test_resnet'
pretrain.small_stem = False
pretrain.batch_size = 4
schedule.warmup_epochs = 0
compute.compile = False
"""
KNN = """
include 'gin/base/compute.gin'
include '{folder}/images.gin'
launch.task = @knn()
knn.evaluator = @knn_evaluator()
knn.compute = @compute()
knn.seed = 0
knn.encoder = 'timm/test_resnet'
knn.small_stem = False
"""


class DivergedTest(FolderTestCase):
    def test_a_real_run_that_diverges_is_recognized(self) -> None:
        for name, text in {"images": IMAGES, "jigclu": METHOD}.items():
            filled = text.replace("{method}", "jigsaw").replace("{folder}", str(self.folder))
            (self.folder / f"{name}.gin").write_text(filled)
        given = ["pretrain.learning_rate=1e30", "pretrain.evaluators=()"]
        loaded = config.load([str(self.folder / "jigclu.gin")], given)
        with (
            contextlib.redirect_stderr(io.StringIO()),
            self.assertRaisesRegex(Diverged, "lower pretrain.learning_rate"),
        ):
            loaded.run(self.folder / "run")


class MiniatureTest(FolderTestCase):
    def test_two_methods_for_real(self) -> None:
        texts = {
            "compare": COMPARE,
            "images": IMAGES,
            "jigclu": METHOD.replace("{method}", "jigsaw"),
            "simclr": METHOD.replace("{method}", "simclr"),
            "knn": KNN,
        }
        for name, text in texts.items():
            (self.folder / f"{name}.gin").write_text(
                text.format(folder=self.folder) if name != "images" else text
            )
        workdir = self.folder / "run"
        with contextlib.redirect_stderr(io.StringIO()):
            loaded = config.load([str(self.folder / "compare.gin")], [], workdir)
            loaded.check(workdir)
            scores = loaded.run(workdir).scores
        for method in ("jigclu", "simclr"):
            self.assertBetween(scores[f"images/{method}/0/knn/knn_accuracy"], 0, 1)
            lines = metrics_file.read(workdir / f"images/{method}/seed_0/metrics.jsonl")
            self.assertEqual(lines[-1]["step"], 20)
        report = (workdir / "report.md").read_text()
        self.assertIn("| jigclu | 4 | 80 |", report)
        self.assertIn("| untrained |", report)
        values = json.loads((workdir / "results.json").read_text())
        runs = [(run["budget"], run["method"]) for run in values["runs"]]
        methods = ("jigclu", "simclr")
        self.assertEqual(
            runs, [(budget, name) for budget in ("images", "time") for name in methods]
        )
        self.assertEqual(values["runs"][0]["curve"]["images"], [0, 80])
        speeds = values["images_per_second"]
        for run in values["runs"]:
            self.assertAlmostEqual(run["hours"], run["images"] / speeds[run["method"]] / 3600)
        # Equal time: the images that SimCLR sees while the reference sees 4 epochs of 20.
        last, ratio = values["runs"][3], speeds["simclr"] / speeds["jigclu"]
        self.assertAlmostEqual(last["epochs"], 4 * ratio)
        self.assertAlmostEqual(last["images"], 80 * ratio, delta=4)
        self.assertLen(values["trials"], 4)
        self.assertEqual(values["runs"][0]["machine"]["processor"], environment.processor())
        self.check_figures(workdir / "figures")

    def check_figures(self, folder: Path) -> None:
        charts = ("knn_knn_accuracy", "knn_over_hours", "knn_over_images")
        names = [f"{budget}_{chart}" for budget in sorted(BUDGETS) for chart in charts]
        self.assertEqual([path.stem for path in sorted(folder.iterdir())], names)
        for path in folder.iterdir():
            svg = ElementTree.parse(path).getroot()
            self.assertContainsSubset(["jigclu", "simclr"], [text.text for text in svg.iter()])


if __name__ == "__main__":
    absltest.main()
