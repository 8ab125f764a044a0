"""Tests of jigclu.tasks.benchmark.recipe against the gin file of the same recipe."""

import dataclasses

from absl.testing import absltest

from jigclu import config
from jigclu.data.procedural import ProceduralImages
from jigclu.tasks.benchmark import recipe
from jigclu.tasks.benchmark.workload import color_augmentation, jigsaw
from jigclu.tasks.pretrain import PretrainTask

SOURCE = ProceduralImages(images=256, size=16, seed=0, split="train")


class RecipeTest(absltest.TestCase):
    def test_equals_the_gin_file(self) -> None:
        bindings = [
            "pretrain.source=@ProceduralImages()",
            *("ProceduralImages.images=256", "ProceduralImages.size=16"),
            *("ProceduralImages.seed=0", "ProceduralImages.split='train'"),
        ]
        task = config.load(["gin/pretrain_r50.gin"], bindings).task
        assert isinstance(task, PretrainTask)
        ours = recipe.published_recipe(task.source)
        for field in dataclasses.fields(PretrainTask):
            expected, value = getattr(task, field.name), getattr(ours, field.name)
            self.assertEqual(value, expected, field.name)

    def test_batch_size_suits_few_images(self) -> None:
        few = ProceduralImages(images=32, size=16, seed=0, split="train")
        task = recipe.published_recipe(few, batch_size=32)
        self.assertEqual((task.batch_size, task.steps_per_epoch), (32, 1))

    def test_blur_is_in_proportion_to_the_patch(self) -> None:
        task = recipe.published_recipe(SOURCE)
        task = recipe.with_patch_size(task, 56, encoder="resnet18")
        self.assertEqual((jigsaw(task).patch_size, task.encoder), (56, "resnet18"))
        self.assertEqual(color_augmentation(task).blur_sigma_max, 1.0)


if __name__ == "__main__":
    absltest.main()
