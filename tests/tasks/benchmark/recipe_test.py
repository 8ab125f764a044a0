"""Tests of jigclu.tasks.benchmark.recipe against the gin file of the same recipe."""

import dataclasses
from pathlib import Path

from absl.testing import absltest

from jigclu import config
from jigclu.tasks.benchmark import recipe
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import write_image_tree


class RecipeTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        root = Path(self.create_tempdir().full_path)
        write_image_tree(root)
        task = config.load(["gin/pretrain_r50.gin"], [f"ImageFolder.root='{root}'"]).task
        assert isinstance(task, PretrainTask)
        self.task = task

    def test_equals_the_gin_file(self) -> None:
        ours = recipe.published_recipe(self.task.source)
        for field in dataclasses.fields(PretrainTask):
            expected, value = getattr(self.task, field.name), getattr(ours, field.name)
            self.assertEqual(value, expected, field.name)

    def test_blur_is_in_proportion_to_the_patch(self) -> None:
        task = recipe.published_recipe(self.task.source)
        task = recipe.with_patch_size(task, 56, encoder="resnet18")
        self.assertEqual((task.patch_size, task.encoder), (56, "resnet18"))
        self.assertEqual(task.augmentation.blur_sigma_max, 1.0)


if __name__ == "__main__":
    absltest.main()
