"""What gin files and bindings come to, and what is said of mistakes in them."""

import logging
import os
from pathlib import Path

from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.ops import optim, schedules
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask

DEMO = "gin/demo.gin"
LARS = ("pretrain.optimizer=@lars()", "lars.momentum=0.9", "lars.weight_decay=0.0")


class ConfigTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def file(self, text: str | bytes, name: str = "run.gin") -> str:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def load(self, *bindings: str) -> PretrainTask:
        task = config.load([DEMO], bindings).task
        assert isinstance(task, PretrainTask)
        return task

    def refused(self, *bindings: str, files: tuple[str, ...] = (DEMO,)) -> str:
        """Returns the one line that a mistake gets."""
        with self.assertRaises(UserError) as caught, self.assertNoLogs(level=logging.DEBUG):
            config.load(files, bindings)
        self.assertLen(str(caught.exception).splitlines(), 1)
        return str(caught.exception)

    def test_later_files_win_and_bindings_win_over_files(self) -> None:
        first = self.file(f"include '{DEMO}'\ntrain.batch_size = 8\ntrain.epochs = 3\n", "a.gin")
        second = self.file("schedule.epochs = 4\ntrain.seed = 5\n", "b.gin")
        task = config.load([first, second], ["pretrain.seed=6", "pretrain.seed=7"]).task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.epochs, task.seed), (8, 4, 7))

    def test_an_earlier_load_leaves_nothing(self) -> None:
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
        self.assertEqual(list(task.crop_scale), [0.5, 1])
        self.assertEqual(task.decay, schedules.StepDecay(milestones=[2, 3], factor=0.1))

    def test_another_optimizer_names_what_it_leaves_idle(self) -> None:
        loaded = config.load([DEMO], [*LARS, "lars.trust_coefficient=0.001"])
        assert isinstance(loaded.task, PretrainTask)
        self.assertEqual(
            loaded.task.optimizer,
            optim.LARS(momentum=0.9, weight_decay=0.0, trust_coefficient=0.001),
        )
        self.assertEqual(loaded.unused, ["sgd.momentum", "sgd.weight_decay"])

    def test_texts(self) -> None:
        loaded = config.load([DEMO], ["pretrain.seed=6", "MEAN=(0.1, 0.2, 0.3)"])
        resolved = dict(line.split(" = ", 1) for line in loaded.resolved.splitlines())
        self.assertEqual(resolved["pretrain.seed"], "6")
        self.assertEqual(resolved["eval_transform.mean"], "(0.1, 0.2, 0.3)")
        self.assertEqual(resolved["val_split/ProceduralImages.images"], "500")
        self.assertNotIn("%", loaded.resolved)
        self.assertIn("eval_transform.mean = %MEAN", loaded.given)
        for text in (loaded.given, loaded.operative):
            again = config.load([self.file(text)], [])
            self.assertEqual(again.resolved, loaded.resolved)

    @parameterized.parameters(
        ("train.batchsize=3", "'batchsize'", "did you mean pretrain.batch_size?"),
        ("trian.batch_size=3", "'trian'", "did you mean train?"),
        ("knn.neighbours=3", "'neighbours'", "did you mean knn_evaluator.neighbors?"),
        ("pretrain.optimizer=@sgt()", "'@sgt()'", "did you mean sgd?"),
        ("lars.momentum=0.9", "lars.momentum = 0.9 never takes effect", "sgd.momentum?"),
        ("a/train.seed=3", "a/train.seed = 3 never takes effect", "did you mean pretrain.seed?"),
        ("MEEN=3", "MEEN = 3 never takes effect"),
        ("pretrain.seed=%SEED", "%SEED is read and not bound; bind it as SEED"),
        ("pretrain.encoder=resnet18", "resnet18; text stands in quotes: 'resnet18'"),
        ("pretrain.seed=", "pretrain.seed=", "Unable to parse value"),
        ("pretrain.seed", "expected ':' or '='"),
        ("jigsaw.crop_scale=(1", "jigsaw.crop_scale=(1", "EOF in multi-line statement"),
        ("=3", "Unexpected token"),
        ("pretrain.seed=@pretrain()", "leads back to itself"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("include 'none.gin'", "Unable to open file: none.gin"),
        ("schedule.decay=@step_decay()", "not bound: step_decay.milestones, step_decay.factor"),
    )
    def test_refuses_names(self, binding: str, *parts: str) -> None:
        message = self.refused(binding)
        for part in parts:
            self.assertIn(part, message)

    @parameterized.parameters(
        ("pretrain.batch_size='64'", "is '64', of type str; expected int"),
        ("pretrain.batch_size=64.0", "is 64.0, of type float; expected int"),
        ("pretrain.batch_size=True", "is True, of type bool; expected int"),
        ("pretrain.batch_size=None", "is None, of type NoneType; expected int"),
        ("compute.compile=1", "is 1, of type int; expected bool"),
        ("pretrain.encoder=18", "expected str"),
        ("pretrain.init_from=3", "expected str or None"),
        ("jigsaw.crop_scale=(0.2, 1.0, 2.0)", "expected tuple[float, float]"),
        ("jigsaw.crop_scale=0.2", "expected tuple[float, float]"),
        ("augmentation.hue='a'", "expected float"),
        (
            "step_decay.factor=-3.0\ntrain.decay=@step_decay()\nstep_decay.milestones=()",
            "must be in [0, 1]",
        ),
        (
            "pretrain.optimizer=@cosine_decay()",
            "a reference to cosine_decay; expected one of @sgd(), @lars",
        ),
        (
            "schedule.decay=@sgd()",
            "a reference to sgd; expected one of @cosine_decay(), @step_decay()",
        ),
        ("pretrain.source=@sgd()", "a reference to sgd; expected one of @ImageFolder()"),
        (
            "pretrain.source=@ProceduralImages",
            "to ProceduralImages; expected one of @ImageFolder()",
        ),
        ("jigsaw.augmentation=@loss_scaling()", "to loss_scaling; expected one of @augmentation()"),
        (
            "pretrain.evaluators=@sgd()",
            "a reference to sgd; expected one of @knn_evaluator(), None",
        ),
    )
    def test_refuses_types(self, binding: str, expected: str) -> None:
        message = self.refused(binding)
        self.assertStartsWith(message, binding.split("=")[0])
        self.assertIn(expected, message)

    @parameterized.parameters(
        ("include 'none.gin'\n", "run.gin", "none.gin", "line 1"),
        ("include 'gin/demo.gin'\n\ntrain.seed =\n", "run.gin, line 3"),
        ("include 'gin/demo.gin'\nlars.momentum = 0.3\n", "lars.momentum = 0.3 never takes"),
        ("", "not bound: launch.task"),
        ("include 'gin/base/pretrain.gin'\n", "not bound: pretrain.source"),
        (b"\xff\xfe\x00", "run.gin", "can't decode byte 0xff"),
    )
    def test_refuses_files(self, text: str | bytes, *parts: str) -> None:
        message = self.refused(files=(self.file(text),))
        for part in parts:
            self.assertIn(part, message)

    def test_another_value_than_a_macro(self) -> None:
        loaded = config.load(
            [DEMO],
            [
                "eval_transform.mean=(0.5, 0.5, 0.5)",
                "augmentation.mean=%OTHER",
                "OTHER=(0.4, 0.4, 0.4)",
            ],
        )
        self.assertEqual(loaded.unused, ["MEAN"])

    def test_unused_binding_beside_a_replaced_one_is_still_refused(self) -> None:
        # Only what a file bound may idle: a binding of the command line is always meant.
        message = self.refused(*LARS, "lars.trust_coefficient=0.001", "sgd.momentum=0.5")
        self.assertIn("sgd.momentum = 0.5 never takes effect", message)

    def test_missing_file(self) -> None:
        message = self.refused(files=("gin/dmeo.gin",))
        self.assertEqual(
            message, "gin file gin/dmeo.gin does not exist; did you mean gin/demo.gin?"
        )

    @parameterized.parameters("gin/demo.gin", "demo.gin")
    def test_project_files_are_found_and_included_from_any_folder(self, name: str) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        own = self.file(f"include '{name}'\ntrain.seed = 5\n")
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
            self.assertIn("not bound: launch.task", self.refused(files=(file,)))


if __name__ == "__main__":
    absltest.main()
