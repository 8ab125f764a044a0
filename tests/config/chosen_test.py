"""What a file leaves to the rules is chosen, shown, stored, and kept by a resumed run."""

import os
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu import config
from jigclu.config import chosen
from jigclu.system import collectives
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import checkpoint
from jigclu.training.knn_evaluator import KnnEvaluator
from tests.config.config_test_case import ConfigTestCase
from tests.ranks import run_on_ranks

FOLDER = "gin/pretrain_folder.gin"
# Short enough for a test.
SHORT = (
    "compute.device='cpu'",
    "compute.precision='float32'",
    "SIZE=32",
    "schedule.epochs=2",
    "loading.workers=0",
)


def least_memory_on_rank() -> int:
    """Returns what a rank, of which the first has more memory, finds."""
    own = 9 - collectives.rank()
    with mock.patch.object(chosen, "device_memory", return_value=own):
        return chosen.least_memory(torch.device("cpu"))


class ChosenTestCase(ConfigTestCase):
    """Has a folder of photos with two classes of five, and one file that is no image."""

    def setUp(self) -> None:
        super().setUp()
        self.photos = self.folder / "photos"
        for name in "ab":
            (self.photos / name).mkdir(parents=True)
            for number in range(5):
                image = Image.new("RGB", (40 + number, 60), (40 * number, 0, 0))
                image.save(self.photos / name / f"{number}.png")
        (self.photos / "a" / "broken.jpg").write_bytes(b"no image")

    def loaded(self, *bindings: str, workdir: Path | None = None) -> config.Configuration:
        return config.load([FOLDER], [f"DATA='{self.photos}'", *bindings], workdir)

    def rejected_folder(self, *bindings: str) -> str:
        return self.rejected(*bindings, files=(FOLDER,))


class ChooseTest(ChosenTestCase):
    def test_one_binding_configures_a_run(self) -> None:
        loaded = self.loaded("compute.device='cpu'")
        self.assertEmpty(loaded.unused)
        task = loaded.task
        assert isinstance(task, PretrainTask)
        self.assertLen(task.source, 9)
        (evaluator,) = task.evaluators
        assert isinstance(evaluator, KnnEvaluator)
        self.assertEqual((len(evaluator.bank), len(evaluator.queries)), (9, 2))
        self.assertEqual(evaluator.neighbors, 4)
        self.assertEqual((task.batch_size, task.schedule.epochs), (8, 5000))
        loaded.check(self.folder / "run")

    def test_choices_are_in_configuration_and_plan_with_their_reasons(self) -> None:
        loaded = self.loaded("compute.device='cpu'")
        self.assertIn("pretrain.batch_size = 8\n", loaded.given)
        lines = loaded.resolved.splitlines()
        reason = "a power of two, at most 9 of 9 images"
        self.assertIn(f"pretrain.batch_size = 8  # chosen: {reason}", lines)
        (size,) = [line for line in lines if line.startswith("SIZE = 32  # chosen: ")]
        self.assertIn(" 42 pixels", size)
        plan = loaded.plan(self.folder / "run").splitlines()
        self.assertIn(f"  pretrain.batch_size: 8 ({reason})", plan)
        self.assertIn("chosen, because it is not bound:", plan)

    def test_bound_values_win_and_later_choices_follow(self) -> None:
        loaded = self.loaded("SIZE=64", "pretrain.batch_size=4", "pretrain.evaluators=()")
        self.assertEmpty(loaded.unused)
        task = loaded.task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.learning_rate), (4, 0.00046875))
        self.assertLen(task.source, 11)  # Nothing is held out.
        self.assertIn("jigsaw.patch_size = 32", loaded.resolved.splitlines())
        self.assertNotIn("SIZE", loaded.chosen.bindings())

    def test_own_file_may_bind_a_choice(self) -> None:
        own = self.file(f"include '{FOLDER}'\nDATA = '{self.photos}'\npretrain.batch_size = 2\n")
        task = config.load([own], []).task
        assert isinstance(task, PretrainTask)
        self.assertEqual(task.batch_size, 2)

    def test_another_source_is_measured_as_well(self) -> None:
        loaded = config.load(
            [FOLDER],
            [
                "pretrain.source=@ProceduralImages()",
                "ProceduralImages.images=150",
                "ProceduralImages.size=96",
                "ProceduralImages.seed=0",
                "ProceduralImages.split='train'",
                "compute.device='cpu'",
            ],
        )
        task = loaded.task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.batch_size, task.evaluators), (32, ()))
        self.assertIn(" 96 pixels", loaded.resolved)

    def test_saved_configuration_has_the_choices(self) -> None:
        loaded = self.loaded()
        again = config.load([self.file(loaded.given)], [])
        lines = [line.split("  # ")[0] for line in loaded.resolved.splitlines()]
        self.assertContainsSubset(again.resolved.splitlines(), lines)

    @parameterized.parameters(
        ("DATA='nowhere'", "DATA: nowhere is not a folder"),
        ("pretrain.seed=%CHOSEN", "pretrain.seed is %CHOSEN, but no rule chooses it: bind it"),
        ("pretrain.batch_size='x'", "pretrain.batch_size is 'x', of type str; expected int"),
        ("pretrain.batch_size=0", "pretrain.batch_size is 0; it must be 2 or more images"),
        ("schedule.epochs='x'", "schedule.epochs is 'x', of type str; expected float"),
        ("SIZE='x'", "SIZE is 'x'; it must be a number of pixels"),
        ("pretrain.encoder=18", "pretrain.encoder is 18, of type int; expected str"),
        ("pretrain.init_from=3", "pretrain.init_from is 3, of type int; expected str or None"),
        ("pretrain.source=@open_folder", "pretrain.source is @open_folder without parentheses"),
        ("pretrain.evaluators=None", "pretrain.evaluators is None, of type NoneType; expected a "),
    )
    def test_rejects_what_cannot_be_chosen(self, binding: str, message: str) -> None:
        rejected = self.rejected_folder(f"DATA='{self.photos}'", binding)
        self.assertStartsWith(rejected, message)

    def test_rejects_a_folder_without_images_and_one_with_a_single_image(self) -> None:
        empty, single = self.folder / "empty", self.folder / "single"
        empty.mkdir()
        single.mkdir()
        Image.new("RGB", (8, 8)).save(single / "a.png")
        message = self.rejected_folder(f"DATA='{empty}'")
        self.assertStartsWith(message, f"DATA: {empty} contains no images")
        message = self.rejected_folder(f"DATA='{single}'")
        self.assertStartsWith(message, "DATA: there is 1 image to train on: use 2 or more")

    def test_rejects_a_folder_that_is_not_bound(self) -> None:
        own = self.file("include 'gin/demo.gin'\npretrain.source = %CHOSEN\n")
        self.assertStartsWith(self.rejected(files=(own,)), "DATA is not bound; bind it to the")

    def test_settings_of_an_evaluation_without_labels_are_rejected(self) -> None:
        (self.photos / "loose.png").write_bytes((self.photos / "a" / "0.png").read_bytes())
        self.assertEmpty(self.loaded().unused)
        message = self.rejected_folder(f"DATA='{self.photos}'", "knn_evaluator.every=5")
        self.assertStartsWith(message, "knn_evaluator.every = 5 never takes effect")

    def test_an_evaluation_of_images_without_labels_must_be_bound_completely(self) -> None:
        (self.photos / "loose.png").write_bytes((self.photos / "a" / "0.png").read_bytes())
        message = self.rejected_folder(
            f"DATA='{self.photos}'", "pretrain.evaluators=(@knn_evaluator(),)"
        )
        self.assertStartsWith(message, "knn_evaluator.bank, knn_evaluator.neighbors, knn_evalu")
        self.assertIn(" are %CHOSEN, which is chosen only for images in class folders", message)

    def test_choices_of_another_method_are_left_out(self) -> None:
        own = self.file(
            f"include '{FOLDER}'\ninclude 'gin/base/simclr.gin'\nDATA = '{self.photos}'\n"
            "pretrain.batch_size = 4\n"
        )
        loaded = config.load([own], [])
        self.assertNotIn("jigsaw.pooling_map", loaded.chosen.bindings())
        self.assertIn("pretrain.source", loaded.chosen.bindings())

    def test_initial_weights_determine_network_and_size(self) -> None:
        home = {"TORCH_HOME": str(self.folder / "torch")}
        with mock.patch.dict(os.environ, home):
            loaded = self.loaded("pretrain.init_from='jigclu_200e'", "compute.device='cpu'")
            loaded.check(self.folder / "run")
        task = loaded.task
        assert isinstance(task, PretrainTask)
        self.assertEqual((task.encoder, task.small_stem), ("resnet50", False))
        message = self.rejected_folder(f"DATA='{self.photos}'", "pretrain.init_from='none.pth'")
        self.assertStartsWith(message, "pretrain.init_from: checkpoint none.pth does not exist")

    def test_the_smallest_device_counts_for_every_rank(self) -> None:
        self.assertEqual(run_on_ranks(least_memory_on_rank, 2), [8, 8])

    def test_files_without_the_marker_choose_nothing(self) -> None:
        self.assertEmpty(config.load(["gin/demo.gin"], []).chosen.choices)


class ResumeTest(ChosenTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.workdir = self.folder / "run"

    def run_one_step(self, *bindings: str) -> Path:
        """Runs one step; returns its checkpoint."""
        loaded = self.loaded(*SHORT, "schedule.stop_after_steps=1", *bindings)
        loaded.check(self.workdir)
        loaded.run(self.workdir)
        path = checkpoint.latest(self.workdir)
        assert path is not None
        return path

    def test_another_machine_keeps_the_choices_for_a_moved_folder(self) -> None:
        path = self.run_one_step()
        self.photos = self.photos.rename(self.folder / "moved")
        bindings = (*SHORT, "schedule.stop_after_steps=2")
        with mock.patch.object(chosen, "device_memory", return_value=1):
            fresh = self.loaded(*bindings)
            resumed = self.loaded(*bindings, workdir=self.workdir)
        self.assertEqual(fresh.chosen.bindings()["pretrain.batch_size"], "2")
        values = resumed.chosen.bindings()
        self.assertEqual(values["pretrain.batch_size"], "8")
        self.assertEqual(values["open_folder.root"], repr(str(self.photos)))
        self.assertEqual(
            resumed.chosen.summary()[0], f"chosen, because it is not bound, as in {path}:"
        )
        resumed.check(self.workdir)
        resumed.run(self.workdir)
        self.assertEndsWith(str(checkpoint.latest(self.workdir)), "step_00000002.pt")

    def test_checkpoint_holds_choices_and_reasons(self) -> None:
        self.assertIn(
            "\npretrain.batch_size = 8  # chosen: a power of two, at most 9 of 9 images\n",
            checkpoint.peek(self.run_one_step())["config"],
        )

    def test_choices_of_a_named_checkpoint_are_kept(self) -> None:
        path = self.run_one_step()
        with mock.patch.object(chosen, "device_memory", return_value=1):
            resumed = self.loaded(*SHORT, f"pretrain.resume_from='{path}'")
        self.assertEqual(resumed.chosen.kept_from, path)
        self.assertEqual(resumed.chosen.bindings()["pretrain.batch_size"], "8")

    def test_binding_of_the_earlier_run_is_required_again(self) -> None:
        self.run_one_step("pretrain.batch_size=4")
        resumed = self.loaded(*SHORT, workdir=self.workdir)
        with self.assertRaisesRegex(UserError, "pretrain.batch_size was 4 and is 8"):
            resumed.check(self.workdir)


if __name__ == "__main__":
    absltest.main()
