"""Stages run one after another, finished ones are skipped, and one table has all scores."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from absl.testing import absltest

from jigclu import config
from jigclu.system.errors import UserError
from jigclu.tasks.reproduce import ReproduceTask, Row, table
from jigclu.tasks.stages import Task
from jigclu.training import checkpoint, metrics_file
from jigclu.training.loop import RunResult
from tests import samples
from tests.folder_case import FolderTestCase

STAGES = """
launch.task = @reproduce()
reproduce.stages = (
    ('first', '{folder}/train.gin', ()),
    ('knn', '{folder}/knn.gin', ("knn.init_from='{{pretrained}}'",)),
    ('untrained', '{folder}/knn.gin', ("knn.init_from=None",)),
)
reproduce.data = None
reproduce.size = 32
reproduce.published = (('knn', 'knn_accuracy', 0.5),)
"""
TRAIN = """
include 'gin/demo.gin'
train_split/ProceduralImages.images = 20
val_split/ProceduralImages.images = 10
knn_evaluator.neighbors = 3
pretrain.batch_size = 10
schedule.epochs = 1
schedule.warmup_epochs = 0
pretrain.small_stem = True
compute.compile = False
"""
KNN = """
include 'gin/base/compute.gin'
include 'gin/base/knn.gin'
launch.task = @knn()
knn.evaluator = @knn_evaluator()
knn.compute = @compute()
knn.seed = 0
compute.device = 'cpu'
compute.precision = 'float32'
knn.encoder = 'resnet18'
knn.small_stem = True
knn_evaluator.bank = @train_split/ProceduralImages()
knn_evaluator.queries = @val_split/ProceduralImages()
ProceduralImages.size = %SIZE
ProceduralImages.seed = 0
train_split/ProceduralImages.images = 20
train_split/ProceduralImages.split = 'train'
val_split/ProceduralImages.images = 10
val_split/ProceduralImages.split = 'val'
eval_transform.resize = %SIZE
eval_transform.crop = %SIZE
knn_evaluator.neighbors = 3
loading.workers = 0
"""


class Stub:
    """Records the calls; the stage of a.gin writes a checkpoint."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls = calls
        self.name = name

    def check(self, workdir: Path) -> None:
        self.calls.append(f"check {self.name}")

    def plan(self, workdir: Path) -> str:
        return f"plan of {self.name}"

    def run(self, workdir: Path, config: str) -> RunResult:
        self.calls.append(f"run {self.name}")
        workdir.mkdir(parents=True, exist_ok=True)
        if self.name == "a.gin":
            (workdir / "checkpoints").mkdir()
            torch.save({}, workdir / "checkpoints" / "step_00000007.pt")
        return RunResult({"score": 0.5}, checkpoint.latest(workdir))


class StubStage(NamedTuple):
    """A configuration of a stub."""

    task: Task
    resolved: str

    def for_workdir(self, workdir: Path) -> "StubStage":
        return self

    def check(self, workdir: Path) -> None:
        self.task.check(workdir)

    def run(self, workdir: Path) -> RunResult:
        return self.task.run(workdir, self.resolved)


class ReproduceTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.calls: list[str] = []
        self.given: list[Sequence[str]] = []

    def task(
        self, *bindings: str, data: str | None = None, size: int | None = None
    ) -> ReproduceTask:
        def load(files: Sequence[str], bindings: Sequence[str], workdir: Path | None) -> StubStage:
            self.given.append(bindings)
            return StubStage(Stub(self.calls, files[0]), f"{files} {bindings}")

        stages = (("one", "a.gin", ()), ("two", "b.gin", ("x='{pretrained}'", *bindings)))
        return ReproduceTask(
            stages=stages,
            data=data,
            size=size,
            published=(("two", "score", 0.75),),
            load=load,
        )

    def run_task(self, task: ReproduceTask) -> str:
        task.check(self.folder)
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            task.run(self.folder, "")
        return printed.getvalue()

    def test_later_stages_get_the_checkpoint_of_the_first(self) -> None:
        self.run_task(self.task())
        path = checkpoint.latest(self.folder / "one")
        self.assertEqual(self.given[-1], [f"x='{path}'"])
        # A stub is of no known kind, and is checked only when its weights exist.
        self.assertEqual(
            self.calls, ["check a.gin", "check a.gin", "run a.gin", "check b.gin", "run b.gin"]
        )

    def test_stages_get_the_folder_and_size_of_the_images(self) -> None:
        self.run_task(self.task("y='{data}/val'", data="/images", size=32))
        first, *_, last = self.given
        self.assertEqual(first, ["DATA='/images'", "SIZE=32"])
        self.assertEqual(last[:2], first)
        self.assertEqual(last[-1], "y='/images/val'")

    def test_finished_stages_are_skipped_and_changed_ones_rerun(self) -> None:
        first = self.run_task(self.task())
        self.assertIn("stage two\n", first)
        self.calls.clear()
        again = self.run_task(self.task())
        self.assertIn("stage two: already finished\n", again)
        self.assertEqual(again.replace(": already finished", ""), first)
        self.assertNotIn("run", " ".join(self.calls))
        self.run_task(self.task("y=1"))
        self.assertEqual([call for call in self.calls if "run" in call], ["run b.gin"])

    def test_stages_rerun_if_the_weights_of_the_first_changed(self) -> None:
        self.run_task(self.task())
        weights = self.folder / "one" / "checkpoints" / "step_00000007.pt"
        torch.save({"seed": "another, and the same name"}, weights)
        self.calls.clear()
        self.run_task(self.task())
        self.assertEqual([call for call in self.calls if "run" in call], ["run b.gin"])

        # Resuming the checkpoint of the stage would continue with the older weights.
        (self.folder / "two" / "checkpoints").mkdir()
        torch.save({}, self.folder / "two" / "checkpoints" / "step_00000001.pt")
        torch.save({"seed": "a third"}, weights)
        with self.assertRaisesRegex(
            UserError, "two has a run with weights .*, not .*remove it to run stage two"
        ):
            self.run_task(self.task())

    def test_result_has_all_scores_and_the_checkpoint_of_the_first_stage(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            result = self.task().run(self.folder, "")
        self.assertEqual(result.scores, {"one/score": 0.5, "two/score": 0.5})
        path = self.folder / "one" / "checkpoints" / "step_00000007.pt"
        self.assertEqual(result.checkpoint, path)

    def test_an_interrupted_stage_runs_again(self) -> None:
        with (
            mock.patch.object(Stub, "run", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            self.run_task(self.task())
        self.assertIn("stage one\n", self.run_task(self.task()))

    def test_table_is_printed_and_written(self) -> None:
        printed = self.run_task(self.task())
        expected = table([Row("one", "score", 0.5, None), Row("two", "score", 0.5, 0.75)])
        self.assertIn("| two | score | 0.5 | 0.75 |", expected)
        self.assertIn("| one | score | 0.5 |  |", expected)
        self.assertIn(expected, printed)
        self.assertIn(expected, (self.folder / "results.md").read_text())
        (line,) = metrics_file.read(self.folder / "metrics.jsonl")
        self.assertEqual((line["two/score"], line["two/score_published"]), (0.5, 0.75))

    def test_rejects_stages_with_equal_names_and_names_the_stage_of_an_error(self) -> None:
        for stages in ((), (("a", "x", ()), ("a", "y", ()))):
            with self.assertRaisesRegex(
                UserError, "^stages is .*one or more, with different names"
            ):
                ReproduceTask(
                    stages=stages, data=None, size=None, published=(), load=self.task().load
                )

        def broken(
            files: Sequence[str], bindings: Sequence[str], workdir: Path | None
        ) -> StubStage:
            raise UserError("no such name")

        task = ReproduceTask(
            stages=(("a", "x", ()),), data=None, size=None, published=(), load=broken
        )
        with self.assertRaisesRegex(UserError, "stage a: no such name"):
            task.check(self.folder)

    def test_later_stages_are_checked_before_the_first_runs(self) -> None:
        for name, text in (("train", TRAIN), ("knn", KNN), ("all", STAGES)):
            (self.folder / f"{name}.gin").write_text(text.format(folder=self.folder))
        (self.folder / "knn.gin").write_text(KNN.replace("neighbors = 3", "neighbors = 50"))
        task = config.load([str(self.folder / "all.gin")], []).task
        with self.assertRaisesRegex(UserError, "stage knn: knn_evaluator.neighbors is 50"):
            task.check(self.folder / "run")
        self.assertFalse((self.folder / "run").exists())

    def test_errors_found_when_checking_a_stage_name_the_binding(self) -> None:
        for name, text in (("train", TRAIN), ("knn", KNN), ("all", STAGES)):
            (self.folder / f"{name}.gin").write_text(text.format(folder=self.folder))
        (self.folder / "knn.gin").write_text(KNN.replace("'resnet18'", "'resnet19'"))
        task = config.load([str(self.folder / "all.gin")], []).task
        with self.assertRaisesRegex(UserError, "^stage knn: knn.encoder 'resnet19' is unknown"):
            task.check(self.folder / "run")

    def test_export_is_checked_before_there_are_weights(self) -> None:
        samples.write_image_tree(self.folder / "images")
        images = f"UnlabeledImages.root='{self.folder}/images'"
        bindings = ("export.init_from='{pretrained}'", images, "export.formats=('onxx',)")
        (self.folder / "train.gin").write_text(TRAIN)
        stages = (
            ("first", f"{self.folder}/train.gin", ()),
            ("export", "gin/export.gin", bindings),
        )
        own = [f"reproduce.stages={stages}", "reproduce.data=None"]
        task = config.load(["gin/reproduce_tiny.gin"], own).task
        with self.assertRaisesRegex(
            UserError, "stage export: export.formats contains 'onxx', which is unknown"
        ):
            task.check(self.folder / "run")

    def test_stages_of_gin_files_run(self) -> None:
        # The encoder comes from the weights, or is bound where there are none.
        bound = "knn.encoder = 'resnet18'\nknn.small_stem = True\n"
        self.assertIn(bound, KNN)
        knn = KNN.replace(bound, "knn.encoder = 'auto'\nknn.small_stem = 'auto'\n")
        random = '("knn.init_from=None", "knn.encoder=\'resnet18\'", "knn.small_stem=True")'
        stages = STAGES.replace('("knn.init_from=None",)', random)
        for name, text in (("train", TRAIN), ("knn", knn), ("all", stages)):
            (self.folder / f"{name}.gin").write_text(text.format(folder=self.folder))
        task = config.load([str(self.folder / "all.gin")], []).task
        assert isinstance(task, ReproduceTask)
        printed = self.run_task(task)
        trained, with_weights, untrained = (
            json.loads((self.folder / stage / "stage.json").read_text())["scores"]["knn_accuracy"]
            for stage in ("first", "knn", "untrained")
        )
        # Pre-training evaluates in bfloat16, the stage in float32: one of ten images may differ.
        self.assertAlmostEqual(with_weights, trained, delta=0.11)
        self.assertIn(f"| knn | knn_accuracy | {with_weights:.4g} | 0.5 |", printed)
        self.assertIn(f"| untrained | knn_accuracy | {untrained:.4g} |  |", printed)
        recorded = (self.folder / "knn" / "config.gin").read_text()
        self.assertIn("checkpoints/step_00000002.pt", recorded)
        self.assertIn(
            "launch.task = @pretrain()", (self.folder / "first" / "config.gin").read_text()
        )


if __name__ == "__main__":
    absltest.main()
