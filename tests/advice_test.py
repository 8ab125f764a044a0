"""The advice of error messages about runs, followed to the letter."""

import contextlib
import io
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.data.folders import UnlabeledImages
from jigclu.data.lists import ImageList
from jigclu.data.packed import PackedImages
from jigclu.data.webdataset import WebDatasetImages
from jigclu.models.encoder import create_encoder
from jigclu.system.errors import UserError
from jigclu.tasks.linear import LinearTask
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import features
from jigclu.training.settings import with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult
from tests.launch_test import SMALL
from tests.samples import write_image_tree
from tests.small_tasks import PRETRAINING, TaskTestCase, final

LINEAR = """
include 'gin/base/linear.gin'
linear.source = @train_split/ProceduralImages()
linear.val = @val_split/ProceduralImages()
ProceduralImages.size = 32
ProceduralImages.seed = 0
train_split/ProceduralImages.images = 20
train_split/ProceduralImages.split = 'train'
val_split/ProceduralImages.images = 10
val_split/ProceduralImages.split = 'val'
linear.train_size = 32
eval_transform.resize = 32
eval_transform.crop = 32
linear.encoder = 'resnet18'
linear.small_stem = True
linear.init_from = None
linear.batch_size = 10
linear.learning_rates = (1.0,)
linear.weight_decays = (0.0,)
schedule.epochs = 1
step_decay.milestones = ()
compute.precision = 'float32'
compute.compile = False
loading.workers = 0
"""

SOURCES = """
ProceduralImages.size = 32
ProceduralImages.seed = 0
ProceduralImages.images = 20
"""
OTHER_TASKS = {
    "knn.gin": f"""
include 'gin/knn.gin'
{SOURCES}
train_split/ProceduralImages.split = 'train'
val_split/ProceduralImages.split = 'val'
knn_evaluator.bank = @train_split/ProceduralImages()
knn_evaluator.queries = @val_split/ProceduralImages()
knn_evaluator.neighbors = 3
knn.encoder = 'resnet18'
knn.small_stem = True
knn.init_from = None
""",
    "pack.gin": f"""
include 'gin/pack.gin'
{SOURCES}
pack.source = @ProceduralImages()
ProceduralImages.split = 'train'
""",
}


class AdviceTest(TaskTestCase, parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.files = {}
        for name, text in (("small", SMALL), ("linear", LINEAR)):
            self.files[name] = self.folder / f"{name}.gin"
            self.files[name].write_text(text)
        self.workdir = self.folder / "run"

    def launch(self, *bindings: str, file: str = "small", workdir: Path | None = None) -> str:
        """Runs a small task as the command does, without its evaluators; returns the log."""
        folder = workdir or self.workdir
        given = ["pretrain.evaluators=()"] if file == "small" else []
        configuration = config.load([str(self.files[file])], [*given, *bindings])
        configuration = configuration.for_workdir(folder)
        configuration.check(folder)
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            configuration.run(folder)
        return printed.getvalue()

    def rejected(self, *bindings: str, file: str = "small") -> str:
        with self.assertRaises(UserError) as caught:
            self.launch(*bindings, file=file)
        return str(caught.exception)

    def texts(self, tag: str) -> list[tuple[int, str]]:
        """Returns steps and texts of a tag in TensorBoard."""
        events = self.events(self.workdir).Tensors(f"{tag}/text_summary")
        return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]

    def test_out_of_memory_the_recommended_micro_batch_size_resumes_the_run(self) -> None:
        self.launch("schedule.stop_after_steps=1")
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        with mock.patch.object(PretrainTask, "take_step", side_effect=full):
            message = self.rejected()
        self.assertStartsWith(message, "CUDA out of memory: bind pretrain.micro_batch_size = 2, ")
        self.assertIn("smaller pretrain.batch_size in another --workdir", message)
        binding = re.findall(r"bind (\S+ = \d+)", message)[0]

        expected = "changed since step 1: micro_batch_size was None and is 2"
        stop = "schedule.stop_after_steps=2"
        self.assertIn(f"\n{expected}\n", self.launch(binding, stop))
        self.assertEqual(self.texts("changes"), [(1, expected)])
        # The change is part of the run from here on, and undoing it is another one.
        self.assertNotIn("changed since", self.launch(binding, stop))
        self.assertIn("step 2: micro_batch_size was 2 and is None", self.launch())
        self.assertEqual(final(self.workdir)["step"], 3)

    def test_out_of_memory_other_tasks_are_advised_to_use_smaller_batches(self) -> None:
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        with mock.patch.object(LinearTask, "_build", side_effect=full):
            message = self.rejected(file="linear")
        self.assertEqual(
            message,
            "CUDA out of memory: use a smaller linear.batch_size, and another --workdir if this "
            "one has checkpoints",
        )
        self.launch("linear.batch_size=5", file="linear")

    @parameterized.parameters(
        ("small", "pretrain.evaluators=(@knn_evaluator(),)", "knn_evaluator.batch_size"),
        ("linear", "schedule.epochs=1", "linear.val_batch_size"),
    )
    def test_out_of_memory_in_an_evaluation_its_own_batch_size_is_advised(
        self, file: str, binding: str, setting: str
    ) -> None:
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        with mock.patch.object(features, "encode_batch", side_effect=full):
            message = self.rejected(binding, file=file)
        self.assertEqual(message, f"CUDA out of memory: use a smaller {setting}")

    @parameterized.parameters(
        ("pretrain.learning_rate = 0.001", "learning_rate was 0.03 and is 0.001"),
        ("compute.precision = 'bfloat16'", "precision was 'float32' and is 'bfloat16'"),
    )
    def test_a_diverged_run_resumes_as_recommended(self, binding: str, change: str) -> None:
        self.launch("schedule.stop_after_steps=1")
        broken = {"loss": torch.tensor(torch.nan)}

        def diverge(task: PretrainTask, step: object, state: TrainState, *_: object) -> StepResult:
            return StepResult(state._replace(step=state.step + 1), broken, {})

        with mock.patch.object(PretrainTask, "take_step", diverge):
            message = self.rejected()
        advice = "lower pretrain.learning_rate, with which the same command resumes from the last "
        self.assertIn(f"{advice}checkpoint", message)
        self.assertIn(f"changed since step 1: {change}\n", self.launch(binding))
        self.assertEqual(final(self.workdir)["step"], 3)

    @parameterized.parameters(
        ("small", "pretrain.batch_size=2", "pretrain.batch_size was 4 and is 2: "),
        ("linear", "linear.batch_size=5", "linear.batch_size was 10 and is 5: "),
    )
    def test_the_command_for_a_new_run_starts_one_from_the_checkpoint(
        self, file: str, binding: str, reason: str
    ) -> None:
        self.launch("schedule.stop_after_steps=1", file=file)
        message = self.rejected(binding, file=file)
        self.assertStartsWith(message, reason)
        command = shlex.split(message.partition(" by ")[2])
        workdir = Path(command[0].removeprefix("--workdir="))
        bindings = [flag.removeprefix("--gin_bindings=") for flag in command[1:]]
        self.assertFalse(workdir.exists())
        printed = self.launch(binding, *bindings, file=file, workdir=workdir)
        self.assertIn(f"initial weights of {self.workdir}/checkpoints/step_", printed)
        self.assertGreater(final(workdir)["step"], 1)

    def test_other_initial_weights_of_a_resumed_run_are_reported_to_have_no_effect(self) -> None:
        self.launch("schedule.stop_after_steps=1")
        printed = self.launch("pretrain.init_from='removed.pth'")
        self.assertIn(
            "changed since step 1: init_from was None and is 'removed.pth', which has no effect on "
            "a resumed run\n",
            printed,
        )

    def test_runs_with_other_settings_do_not_share_a_workdir(self) -> None:
        """A second run that only names the gin file has the default workdir of the first."""
        self.launch()
        before = self.contents()
        for binding in ("pretrain.learning_rate=0.001", "pretrain.seed=7", "jigsaw.grid=4"):
            message = self.rejected(binding)
            self.assertStartsWith(message, binding.partition("=")[0] + " was ")
            self.assertIn("another --workdir for a new run", message)
        self.assertEqual(self.contents(), before)

    def test_a_finished_run_is_evaluated_again_on_other_images(self) -> None:
        first = self.launch(file="linear")
        again = self.launch(file="linear")
        other = self.launch("val_split/ProceduralImages.images=50", file="linear")
        scores = [text.partition("top-1 ")[2] for text in (first, again, other)]
        self.assertEqual(scores[0], scores[1])
        self.assertIn("of 50 images of val", scores[2])
        self.assertNotIn("\nstep ", again)
        # Of 50 images, an even percentage; those of 10 images are multiples of ten.
        recorded = other.partition("\nstep ")[2].partition("top1 ")[2].partition(",")[0]
        self.assertEqual(recorded, scores[2].partition(",")[0])

    def test_an_evaluation_resumes_with_the_weights_of_its_run_wherever_they_are(self) -> None:
        paths = [self.folder / name for name in ("a.pth", "b.pth", "other.pth")]
        for path in paths:
            torch.save(create_encoder("resnet18", True).state_dict(), path)
        shutil.copy(paths[0], paths[1])
        a, b, other = (f"linear.init_from='{path}'" for path in paths)
        self.launch(a, "schedule.stop_after_steps=1", file="linear")
        self.assertStartsWith(self.rejected(other, file="linear"), "linear.init_from was ")
        paths[0].unlink()
        moved = self.launch(b, "schedule.stop_after_steps=1", file="linear")
        self.assertIn(f"changed since step 1: init_from was '{paths[0]}' and is ", moved)
        paths[1].unlink()
        self.assertStartsWith(self.rejected(b, file="linear"), "linear.init_from was ")
        self.assertNotIn("changed since", self.launch(a, file="linear"))

    def test_a_pruned_checkpoint_to_resume_is_needed_only_by_a_new_workdir(self) -> None:
        self.launch("schedule.stop_after_steps=1")
        pruned = self.folder / "step_00000001.pt"
        (path,) = (self.workdir / "checkpoints").iterdir()
        path.rename(pruned)
        binding = f"pretrain.resume_from='{pruned}'"
        self.launch(binding, "schedule.stop_after_steps=2")
        pruned.unlink()
        self.assertIn("step_00000002.pt at step 2", self.launch(binding))
        self.workdir = self.folder / "new"
        self.assertStartsWith(self.rejected(binding), "pretrain.resume_from: checkpoint ")

    def test_tasks_do_not_write_to_the_workdir_of_another_task(self) -> None:
        self.launch("schedule.stop_after_steps=1")
        before = self.contents()
        message = self.rejected(file="linear")
        self.assertStartsWith(message, f"workdir {self.workdir} holds the records of a pretrain ")
        self.assertEqual(self.contents(), before)
        # Stages of `reproduce` have no configuration of their own, but checkpoints.
        (self.workdir / "config.gin").unlink()
        before = self.contents()
        for file in OTHER_TASKS:
            self.files[file] = self.folder / file
            (self.folder / file).write_text(OTHER_TASKS[file])
            self.assertIn("holds the records of a training task", self.rejected(file=file))
        self.assertEqual(self.contents(), before)
        self.assertIn("is a pre-training checkpoint", self.rejected(file="linear"))

    def test_images_that_moved_are_recognized_by_their_content(self) -> None:
        write_image_tree(self.folder / "images")
        images = UnlabeledImages(str(self.folder / "images"))
        PackTask(
            source=images,
            image_format="raw",
            shorter_side=16,
            quality=90,
            images_per_shard=100,
            workers=1,
        ).run(self.folder / "pack", "")
        (self.folder / "shards").mkdir()
        with tarfile.open(self.folder / "shards" / "0.tar", "w") as tar:
            for index in range(len(images)):
                tar.add(images.name(index), f"{index}.png")
        names = [
            str(Path(images.name(index)).relative_to(self.folder / "images")) for index in (0, 1)
        ]
        for name in ("list.txt", "moved.txt"):
            (self.folder / name).write_text("\n".join(names))
        pack, shards, root = (str(self.folder / name) for name in ("pack", "shards", "images"))
        for before, after in (
            (PackedImages(pack, verify=False), PackedImages(pack, verify=True)),
            (
                WebDatasetImages(shards, "*.tar", str(self.folder / "index")),
                WebDatasetImages(shards, "*.tar", str(self.folder / "other")),
            ),
            (
                ImageList(str(self.folder / "list.txt"), root),
                ImageList(str(self.folder / "moved.txt"), root),
            ),
        ):
            task = with_settings(PRETRAINING, source=before)
            self.assertEqual(with_settings(task, source=after).recipe(), task.recipe())

    def contents(self) -> dict[str, bytes]:
        files = (path for path in self.workdir.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    def test_the_default_workdir_has_the_name_of_the_last_file_that_is_not_a_part(self) -> None:
        own, base = str(self.files["small"]), "gin/base/knn.gin"
        for files, name in (
            (["gin/pretrain_r50.gin"], "pretrain_r50"),
            (["gin/pretrain_r50.gin", base], "pretrain_r50"),
            (["gin/pretrain_r50.gin", own, base], "small"),
            (["knn.gin"], "knn"),
            ([base], "knn"),
        ):
            self.assertEqual(config.default_workdir(files), Path("runs") / name)


if __name__ == "__main__":
    absltest.main()
