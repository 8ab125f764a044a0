"""Macros follow from SIZE unless they are bound."""

from absl.testing import absltest, parameterized

from jigclu import config
from jigclu.config import sizes
from jigclu.methods.jigsaw import Jigsaw
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluator
from tests import samples
from tests.config.config_test_case import DEMO, ConfigTestCase

TINY = "gin/pretrain_r18_tinyimagenet.gin"


class SizesTest(ConfigTestCase):
    @parameterized.parameters(
        (224, 112, 2.0, 256), (96, 48, 0.9, 110), (64, 32, 0.6, 73), (32, 16, 0.3, 37)
    )
    def test_published_proportions(self, size: int, patch: int, blur: float, resize: int) -> None:
        self.assertEqual(
            sizes.derive({"SIZE": str(size)}, sizes.DERIVED),
            {"PATCH_SIZE": patch, "BLUR_SIGMA": blur, "RESIZE": resize},
        )

    def test_bound_macros_are_kept_and_unread_ones_left_out(self) -> None:
        bound = {"SIZE": "64", "PATCH_SIZE": "56"}
        self.assertEqual(sizes.derive(bound, ["PATCH_SIZE", "BLUR_SIGMA"]), {"BLUR_SIGMA": 1.0})
        self.assertEqual(sizes.derive(bound, ["SIZE"]), {})

    def test_odd_sizes_are_valid_unless_they_are_halved(self) -> None:
        self.assertEqual(sizes.derive({"SIZE": "513"}, ["RESIZE"]), {"RESIZE": 586})
        with self.assertRaisesRegex(UserError, "^SIZE is 513; it must be even"):
            sizes.derive({"SIZE": "513"}, ["PATCH_SIZE"])

    @parameterized.parameters("SIZE='64'", "SIZE=1", "SIZE=64.0", "PATCH_SIZE=-4", "SIZE=@demo")
    def test_rejects_what_is_no_number_of_pixels(self, binding: str) -> None:
        self.assertRegex(self.rejected(binding), r"it must be a number of pixels|No configurable")

    def test_two_bindings_train_on_class_folders_of_another_size(self) -> None:
        samples.write_image_tree(self.folder / "train")
        samples.write_image_tree(self.folder / "val")
        loaded = config.load(
            [TINY], [f"DATA='{self.folder}'", "SIZE=32", "knn_evaluator.neighbors=1"]
        )
        self.assertEmpty(loaded.unused)
        task = loaded.task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        (evaluator,) = task.evaluators
        assert isinstance(evaluator, KnnEvaluator)
        for source, split in (
            (task.source, "train"),
            (evaluator.bank, "train"),
            (evaluator.queries, "val"),
        ):
            self.assertStartsWith(source.name(0), f"{self.folder}/{split}/")
        self.assertEqual(task.method.patch_size, 16)
        self.assertIn("augmentation.blur_sigma_max = 0.3", loaded.resolved.splitlines())
        transform = evaluator.eval_transform
        self.assertEqual((transform.resize, transform.crop), (32, 32))

    def test_saved_configuration_follows_a_new_size(self) -> None:
        saved = self.file(config.load([DEMO], []).given)
        task = config.load([saved], ["SIZE=64"]).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        self.assertEqual(task.method.patch_size, 32)

    def test_size_that_nothing_reads_is_rejected(self) -> None:
        own = self.file("include 'gin/pack.gin'\n")
        samples.write_image_tree(self.folder / "images")
        message = self.rejected("SIZE=64", f"DATA='{self.folder}'", files=(own,))
        self.assertStartsWith(message, "SIZE = 64 never takes effect")


if __name__ == "__main__":
    absltest.main()
