"""From gin files and bindings to one task; bindings without effect; resuming a run."""

import os
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

import jigclu
from jigclu import config
from jigclu.methods.jigsaw import Jigsaw
from jigclu.ops import optim, schedules
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import checkpoint
from jigclu.training.knn_evaluator import KnnEvaluator
from tests.config.config_test_case import DEMO, LARS, ConfigTestCase


class LoadTest(ConfigTestCase):
    def test_later_files_override_earlier_ones_and_bindings_override_files(self) -> None:
        first = self.file(
            f"include '{DEMO}'\npretrain.batch_size = 8\nschedule.epochs = 3\n", "a.gin"
        )
        second = self.file("schedule.epochs = 4\npretrain.seed = 5\n", "b.gin")
        task = config.load([first, second], ["pretrain.seed=6", "pretrain.seed=7"]).task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.schedule.epochs, task.seed), (8, 4, 7))

    def test_bindings_of_an_earlier_load_are_gone(self) -> None:
        self.load("pretrain.seed=6")
        self.assertEqual(self.load().seed, 0)

    def test_kinds_of_values(self) -> None:
        task = self.load(
            "pretrain.learning_rate=1",
            "jigsaw.crop_scale=[0.5, 1]",
            "schedule.warmup_epochs=0.5",
            "schedule.decay=@step_decay()",
            "step_decay.milestones=[2, 3]",
            "step_decay.factor=0.1",
        )
        self.assertEqual(task.learning_rate, 1)
        assert isinstance(task.method, Jigsaw)
        self.assertEqual(list(task.method.crop_scale), [0.5, 1])
        self.assertEqual(task.schedule.warmup_epochs, 0.5)
        self.assertEqual(task.schedule.decay, schedules.StepDecay(milestones=[2, 3], factor=0.1))

    def test_percent_signs_in_texts_are_no_macros(self) -> None:
        for path in ("100%done", "my%20data", "%MEAN", "a'%DATA"):
            root = str(self.folder / path)
            os.mkdir(root)
            for number in range(4):
                Image.new("RGB", (9, 9)).save(f"{root}/{number}.png")
            loaded = config.load(
                [DEMO],
                [
                    "pretrain.source=@UnlabeledImages()",
                    f"UnlabeledImages.root={root!r}",
                    "pretrain.evaluators=()",
                ],
            )
            self.assertIn(f"UnlabeledImages.root = {root!r}\n", loaded.resolved)

    def test_gin_files_and_paths_can_be_in_the_home_directory(self) -> None:
        with mock.patch.dict(os.environ, HOME=str(self.folder)):
            file = self.file(f"include '{DEMO}'\npretrain.seed = 5\n", "a.gin")
            task = config.load([f"~/{os.path.basename(file)}"], []).task
        assert isinstance(task, PretrainTask)
        self.assertEqual(task.seed, 5)

    def test_scoped_bindings_apply_to_one_reference_only(self) -> None:
        task = self.load("loading.workers=3")
        (evaluator,) = task.evaluators
        assert isinstance(evaluator, KnnEvaluator)
        self.assertEqual(task.loading.workers, 3)
        self.assertEqual((evaluator.loading.workers, evaluator.loading.prefetch), (0, 2))

    def test_texts_list_given_effective_and_resolved_bindings(self) -> None:
        loaded = config.load([DEMO], ["pretrain.seed=6", "MEAN=(0.1, 0.2, 0.3)"])
        resolved = dict(line.split(" = ", 1) for line in loaded.resolved.splitlines())
        self.assertEqual(resolved["pretrain.seed"], "6")
        self.assertEqual(resolved["eval_transform.mean"], "(0.1, 0.2, 0.3)")
        self.assertEqual(resolved["augmentation.mean"], "(0.1, 0.2, 0.3)")
        self.assertEqual(resolved["val_split/ProceduralImages.images"], "500")
        self.assertEqual(resolved["evaluation/loading.workers"], "0")
        self.assertNotIn("%", loaded.resolved)
        self.assertIn("eval_transform.mean = %MEAN", loaded.given)
        for text in (loaded.given, loaded.operative):
            again = config.load([self.file(text)], [])
            self.assertEqual(again.resolved, loaded.resolved)

    def test_changes_of_shipped_files_are_listed(self) -> None:
        own = self.file("include 'gin/demo.gin'\npretrain.seed = 1\nschedule.epochs = 7\n")
        loaded = config.load([own], ["pretrain.seed=2", "train_split/ProceduralImages.seed=3"])
        self.assertEqual(loaded.file, DEMO)
        self.assertEqual(
            loaded.changes,
            [("pretrain.seed", "0", "2"), ("train_split/ProceduralImages.seed", None, "3")],
        )

    def test_own_file_without_shipped_ones_follows_none(self) -> None:
        text = config.load([DEMO], []).given
        loaded = config.load([self.file(text)], [])
        self.assertIsNone(loaded.file)

    @parameterized.parameters("gin/demo.gin", "demo.gin")
    def test_project_files_are_found_and_included_from_any_folder(self, name: str) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        own = self.file(f"include '{name}'\npretrain.seed = 5\n")
        resolved = config.load([name], ["pretrain.seed=5"]).resolved
        self.assertEqual(config.load([own], []).resolved, resolved)

    @parameterized.parameters("gin/demo.gin", "demo.gin")
    def test_files_of_the_working_directory_come_first(self, name: str) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        (self.folder / "gin").mkdir()
        self.file("MINE = 1\n", name)
        self.file(f"include '{name}'\n", "run.gin")
        for file in (name, "run.gin"):
            self.assertIn("not bound: launch.task", self.rejected(files=(file,)))

    @parameterized.parameters(
        ("include 'none.gin'\n", "run.gin", "none.gin", "line 1"),
        (f"include '{DEMO}'\n\npretrain.seed =\n", "run.gin, line 3"),
        (f"include '{DEMO}'\nlars.momentum = 0.3\n", "lars.momentum = 0.3 never takes effect"),
        ("", "not bound: launch.task"),
        ("include 'gin/base/pretrain.gin'\n", "not bound: schedule.epochs, schedule.decay"),
        ("include 'gin/base/jigsaw.gin'\n", "not bound: pretrain.source"),
        (b"\xff\xfe\x00", "run.gin: not UTF-8 text; save it in that encoding"),
    )
    def test_rejects_files(self, text: str | bytes, *parts: str) -> None:
        message = self.rejected(files=(self.file(text),))
        for part in parts:
            self.assertIn(part, message)

    @parameterized.parameters(
        ("gin/dmeo.gin", "; did you mean gin/demo.gin?"),
        ("demo", "; did you mean gin/demo.gin?"),
        ("base/jigsw.gin", "; did you mean gin/base/jigsaw.gin?"),
        ("gin/foo.gin", ""),
    )
    def test_missing_file_gets_a_hint(self, file: str, hint: str) -> None:
        message = self.rejected(files=(file,))
        self.assertEqual(message, f"gin file {file} does not exist{hint}")


class UnusedBindingsTest(ConfigTestCase):
    def test_bindings_of_a_replaced_optimizer_are_listed(self) -> None:
        loaded = config.load([DEMO], [*LARS, "lars.trust_coefficient=0.001"])
        assert isinstance(loaded.task, PretrainTask)
        self.assertEqual(
            loaded.task.optimizer,
            optim.LARS(momentum=0.9, weight_decay=0.0, trust_coefficient=0.001),
        )
        names = ("decay_norms_and_biases", "momentum", "nesterov", "weight_decay")
        self.assertEqual(loaded.unused, [f"sgd.{name}" for name in names])

    def test_bindings_of_removed_evaluators_are_listed(self) -> None:
        loaded = config.load([DEMO], ["pretrain.evaluators=()"])
        self.assertIn("knn_evaluator.neighbors", loaded.unused)
        self.assertIn("eval_transform.resize", loaded.unused)
        self.assertIn("evaluation/loading.workers", loaded.unused)
        self.assertNotIn("loading.workers", loaded.unused)

    def test_macro_without_readers_is_listed(self) -> None:
        loaded = config.load(
            [DEMO],
            [
                "eval_transform.mean=(0.5, 0.5, 0.5)",
                "augmentation.mean=%OTHER",
                "OTHER=(0.4, 0.4, 0.4)",
            ],
        )
        self.assertEqual(loaded.unused, ["MEAN"])

    def test_rejects_unused_bindings_of_the_command_line(self) -> None:
        # Only bindings of files may lose their reader: those of the command line are intended.
        message = self.rejected(*LARS, "lars.trust_coefficient=0.001", "sgd.momentum=0.5")
        self.assertIn("sgd.momentum = 0.5 never takes effect", message)

    @parameterized.parameters(
        ("lars.momentum=0.9", "lars.momentum = 0.9 never", "; did you mean sgd.momentum?"),
        ("linear.batch_size=9", "knn_evaluator.batch_size or pretrain.batch_size?"),
        ("a/pretrain.seed=3", "a/pretrain.seed = 3 never", "; did you mean pretrain.seed?"),
        ("linear.seed=3", "linear.seed = 3 never takes effect"),
        # Both references have a scope with a binding of its own.
        ("ProceduralImages.images=7", "ProceduralImages.images = 7 never takes effect"),
        ("seed=7", "seed = 7 never", "; bind pretrain.seed or "),
        ("MEEN=3", "MEEN = 3 never takes effect"),
    )
    def test_rejects_bindings_without_readers(self, binding: str, *parts: str) -> None:
        message = self.rejected(binding)
        for part in parts:
            self.assertIn(part, message)

    def test_own_file_may_replace_what_a_shipped_file_configures(self) -> None:
        own = self.file(
            "include 'gin/pretrain_r18_tinyimagenet.gin'\n"
            "pretrain.source = @UnlabeledImages()\n"
            f"UnlabeledImages.root = '{self.folder}'\n"
            "pretrain.evaluators = ()\n"
            "pretrain.optimizer = @lars()\n"
            "lars.momentum = 0.9\nlars.weight_decay = 0.0\nlars.trust_coefficient = 0.001\n"
        )
        Image.new("RGB", (8, 8)).save(self.folder / "image.png")
        loaded = config.load([own], [])
        for name in ("ImageFolder.root", "knn_evaluator.bank", "sgd.momentum"):
            self.assertIn(name, loaded.unused)
        self.assertNotIn("lars.momentum", loaded.unused)
        (line,) = [text for text in loaded.plan(self.folder).splitlines() if "readers" in text]
        self.assertIn("sgd.momentum", line)

    def test_own_binding_without_reader_is_rejected_beside_a_replaced_one(self) -> None:
        own = self.file(
            f"include '{DEMO}'\npretrain.evaluators = ()\nknn_evaluator.neighbors = 3\n"
        )
        self.assertEqual(
            self.rejected(files=(own,)),
            "knn_evaluator.neighbors = 3 never takes effect, because nothing that runs reads it; "
            f"remove it (bound in {own})",
        )

    def test_included_binding_that_never_had_a_reader_is_rejected(self) -> None:
        base = self.file(f"include '{DEMO}'\nlars.momentum = 0.9\n", "base.gin")
        own = self.file("include 'base.gin'\npretrain.seed = 3\n")
        self.assertEndsWith(self.rejected(files=(own,)), f" (bound in {base})")

    def test_scope_that_is_missing_is_named(self) -> None:
        self.assertIn(
            "; bind train_split/ProceduralImages.images or val_split/ProceduralImages.images "
            "instead",
            self.rejected("ProceduralImages.images=7"),
        )


class ResumeTest(ConfigTestCase):
    def setUp(self) -> None:
        super().setUp()
        task = self.load()
        recipe = task.recipe()
        contents: dict[str, Any] = {
            "parameters": {},
            "buffers": {},
            "optimizer": {
                "momentum": {},
                "loss_scale": torch.tensor(1.0),
                "good_steps": torch.tensor(0),
            },
            "rng": {"cpu": torch.get_rng_state()},
            "step": 1,
            "config": "",
            "settings": {"task": recipe.task} | recipe.settings,
            "versions": {"jigclu": jigclu.__version__},
            "scores": [],
            "data": recipe.images,
            "machine": {"precision": ["float32", "bound"]},
        }
        self.path = checkpoint.save(self.folder, contents, 1, keep_last=1, keep_every=0)

    def rejected_on_resume(self, *bindings: str) -> str:
        configuration = config.load([DEMO], bindings)
        with self.assertRaises(UserError) as caught:
            configuration.check(self.folder)
        return self.one_line(caught.exception)

    def test_the_same_run_resumes(self) -> None:
        config.load([DEMO], []).check(self.folder)

    @parameterized.parameters(
        ("schedule.epochs=8", "schedule.epochs was 7 and is 8"),
        ("schedule.per_epoch=False", "schedule.per_epoch was True and is False"),
        ("jigsaw.grid=4", "jigsaw.grid was 2 and is 4"),
        ("jigsaw.temperature=0.5", "jigsaw.temperature was 0.3 and is 0.5"),
        ("augmentation.hue=0.2", "augmentation.hue was 0.1 and is 0.2"),
        ("sgd.momentum=0.5", "sgd.momentum was 0.9 and is 0.5"),
        ("pretrain.seed=1", "pretrain.seed was 0 and is 1"),
        ("pretrain.batch_size=32", "pretrain.batch_size was 64 and is 32"),
    )
    def test_rejects_a_change_of_what_is_learned(self, binding: str, change: str) -> None:
        message = self.rejected_on_resume(binding)
        self.assertStartsWith(message, f"{change}: {self.path} comes from another run; ")
        binding = f"pretrain.init_from = '{self.path}'"
        command = f'--workdir="{self.folder}_2" --gin_bindings="{binding}"'
        self.assertEndsWith(message, f"or start one from its encoder by {command}")

    def test_counts_further_changes(self) -> None:
        message = self.rejected_on_resume("jigsaw.grid=4", "schedule.epochs=8", "pretrain.seed=1")
        self.assertIn(" (2 more settings differ): ", message)

    def test_rejects_another_optimizer(self) -> None:
        message = self.rejected_on_resume(*LARS, "lars.trust_coefficient=0.001")
        self.assertStartsWith(message, "pretrain.optimizer was 'SGD' and is 'LARS' (4 more ")

    def test_rejects_other_images(self) -> None:
        message = self.rejected_on_resume("train_split/ProceduralImages.images=1999")
        self.assertStartsWith(message, "pretrain.source has other images than before")

    @parameterized.parameters(
        "compute.precision='float32'",
        "compute.channels_last=False",
        "loading.workers=3",
        "schedule.stop_after_steps=5",
        "saving.every=7",
        "reporting.log_every=7",
        "knn_evaluator.neighbors=7",
        "pretrain.evaluators=()",
        "pretrain.resume_from='{path}'",
        "pretrain.resume_from='/pruned/step_00000001.pt'",
        "pretrain.init_from='/removed/weights.pth'",
        "pretrain.learning_rate=0.1",
        "pretrain.micro_batch_size=8",
    )
    def test_accepts_other_changes(self, binding: str) -> None:
        config.load([DEMO], [binding.format(path=self.path)]).check(self.folder)

    def test_rejects_an_end_before_the_steps_that_were_taken(self) -> None:
        contents = checkpoint.load(self.path, "cpu") | {"step": 4}
        path = checkpoint.save(self.folder, contents, 4, keep_last=1, keep_every=0)
        config.load([DEMO], ["schedule.stop_after_steps=4"]).check(self.folder)
        self.assertEqual(
            self.rejected_on_resume("schedule.stop_after_steps=3"),
            f"schedule.stop_after_steps is 3, but {path} already has 4 steps: use a larger number, "
            "or None to train to the end",
        )


if __name__ == "__main__":
    absltest.main()
