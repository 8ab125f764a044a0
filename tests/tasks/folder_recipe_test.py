"""The rules choose sensible recipes for folders and machines of any size."""

import ast
import runpy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data.folders import scan_folder
from jigclu.data.sources import ImageArray
from jigclu.models.weights import Architecture
from jigclu.system.errors import UserError
from jigclu.tasks import folder_recipe
from jigclu.tasks.folder_recipe import Facts
from tests.folder_case import FolderTestCase

GPU = Facts(images=300, side=500, on_gpu=True, memory=24e9, processes=1, weights=None)
CPU = GPU._replace(on_gpu=False)


def chosen(facts: Facts, **bound: Any) -> dict[str, Any]:
    """Returns all values, with those that are bound; in names, _ stands for the dot."""
    names = {name.replace(".", "_"): name for name in folder_recipe.RULES}
    names["pretrain_optimizer"] = "pretrain.optimizer"
    known = {"pretrain.optimizer": "@sgd()"} | {names[name]: value for name, value in bound.items()}
    left = [name for name in folder_recipe.RULES if name not in known]
    choices = folder_recipe.choose_training(facts, known, left)
    assert [choice.name for choice in choices] == left
    return known | {choice.name: ast.literal_eval(choice.value) for choice in choices}


class ChooseImagesTest(FolderTestCase):
    def add(self, *counts: tuple[str, int]) -> None:
        """Adds empty image files to folders."""
        for folder, count in counts:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (self.folder / folder / f"{number}.png").touch()

    def choose(self, evaluates: bool = True) -> dict[str, str]:
        choices = folder_recipe.choose_images(str(self.folder), evaluates)
        return {choice.name: choice.value for choice in choices}

    def test_images_without_classes_are_all_trained_on_and_not_evaluated(self) -> None:
        self.add(("", 3), ("a", 5), ("b/c", 5))
        self.assertEqual(
            self.choose(),
            {
                "open_folder.root": repr(str(self.folder)),
                "pretrain.source": "@open_folder()",
                "pretrain.evaluators": "()",
            },
        )

    def test_a_tenth_of_each_class_is_held_out(self) -> None:
        self.add(("a", 20), ("b/nested", 40))
        self.assertEqual(
            self.choose(),
            {
                "open_folder.root": repr(str(self.folder)),
                "pretrain.source": "@train_part/HeldOut()",
                "pretrain.evaluators": "(@knn_evaluator(),)",
                "knn_evaluator.bank": "@train_part/HeldOut()",
                "knn_evaluator.queries": "@held_out/HeldOut()",
                "knn_evaluator.neighbors": "20",
            },
        )

    @parameterized.parameters("val", "valid", "validation", "test")
    def test_evaluation_images_beside_train_are_used(self, split: str) -> None:
        self.add(("train/a", 3), ("train/b", 3), (f"{split}/a", 1), (f"{split}/b", 1))
        self.assertEqual(
            self.choose(),
            {
                "open_folder.root": repr(f"{self.folder}/train"),
                "pretrain.source": "@open_folder()",
                "val/open_folder.root": repr(f"{self.folder}/{split}"),
                "pretrain.evaluators": "(@knn_evaluator(),)",
                "knn_evaluator.bank": "@open_folder()",
                "knn_evaluator.queries": "@val/open_folder()",
                "knn_evaluator.neighbors": "3",
            },
        )

    def test_splits_may_consist_of_links_and_have_any_usual_name(self) -> None:
        self.add(("images/a", 3), ("images/b", 3), ("Testing/a", 1), ("Testing/b", 1))
        for name in "ab":
            for path in (self.folder / "images" / name).iterdir():
                link = self.folder / "Training" / name / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        values = self.choose()
        self.assertEqual(values["open_folder.root"], repr(f"{self.folder}/Training"))
        self.assertEqual(values["val/open_folder.root"], repr(f"{self.folder}/Testing"))

    def test_evaluation_images_of_other_classes_are_not_used(self) -> None:
        self.add(("train/a", 20), ("train/b", 20), ("val/a", 5), ("val/c", 5))
        values = self.choose()
        self.assertEqual(values["open_folder.root"], repr(f"{self.folder}/train"))
        self.assertEqual(values["knn_evaluator.queries"], "@held_out/HeldOut()")

    def test_train_without_classes_excludes_the_other_splits(self) -> None:
        self.add(("train", 4), ("val", 4))
        values = self.choose()
        self.assertEqual(values["open_folder.root"], repr(f"{self.folder}/train"))
        self.assertEqual(values["pretrain.evaluators"], "()")

    @parameterized.parameters(
        ((("a", 9), ("b", 1)), "()"),  # A class of one image.
        ((("a", 3), ("b", 3)), "()"),  # A third of the images would be held out.
        ((("a", 30),), "()"),  # One class.
        ((("a", 30), ("b", 2)), "(@knn_evaluator(),)"),
        ((("a", 5), ("b", 5)), "(@knn_evaluator(),)"),
    )
    def test_small_classes_keep_their_images(
        self, counts: tuple[tuple[str, int], ...], evaluators: str
    ) -> None:
        self.add(*counts)
        self.assertEqual(self.choose()["pretrain.evaluators"], evaluators)

    def test_nothing_is_held_out_if_the_evaluation_is_bound(self) -> None:
        self.add(("a", 20), ("b", 20))
        self.assertEqual(self.choose(evaluates=False)["pretrain.source"], "@open_folder()")

    def test_rejects_folders_without_images(self) -> None:
        self.add(("train", 0))
        with self.assertRaisesRegex(UserError, "contains no images"):
            self.choose()


class TypicalSideTest(FolderTestCase):
    def save(self, name: str, width: int, height: int) -> None:
        Image.new("RGB", (width, height)).save(self.folder / name)

    def test_median_of_shorter_sides_without_unreadable_files(self) -> None:
        self.save("a.png", 40, 30)
        self.save("b.jpg", 50, 90)
        self.save("c.png", 4000, 3000)
        (self.folder / "d.jpg").write_bytes(b"no image")
        (self.folder / "e.png").touch()
        self.assertEqual(folder_recipe.typical_side(scan_folder(str(self.folder))), 50)

    def test_sample_is_bounded_and_spread_evenly(self) -> None:
        source = ImageArray("memory", torch.zeros(1000, 3, 6, 8, dtype=torch.uint8), [], None)
        with mock.patch.object(source, "read", wraps=source.read) as read:
            self.assertEqual(folder_recipe.typical_side(source), 6)
        indices = [call.args[0] for call in read.mock_calls]
        self.assertLen(indices, 100)
        self.assertEqual((indices[0], indices[50], indices[-1]), (0, 505, 999))

    def test_rejects_a_folder_of_unreadable_files(self) -> None:
        (self.folder / "a.jpg").write_bytes(b"no image")
        (self.folder / "b.jpg").touch()
        with self.assertRaisesRegex(UserError, r"^none of 2 images can be read, .*b\.jpg "):
            folder_recipe.typical_side(scan_folder(str(self.folder)))


class ChooseTrainingTest(parameterized.TestCase):
    def test_imagenet_gets_the_published_recipe_for_its_size(self) -> None:
        values = chosen(GPU._replace(images=1_281_167))
        self.assertEqual(
            (values["SIZE"], values["pretrain.encoder"], values["jigsaw.pooling_map"]),
            (224, "resnet50", 8),
        )
        self.assertEqual(
            (values["pretrain.batch_size"], values["pretrain.learning_rate"]), (256, 0.03)
        )
        self.assertEqual(values["schedule.epochs"], 200)

    def test_cifar_gets_the_recipe_of_small_images(self) -> None:
        values = chosen(GPU._replace(images=50_000, side=32))
        self.assertEqual(
            [values[name] for name in list(folder_recipe.RULES)[:5]],
            [32, "resnet18", True, None, 256],
        )

    @parameterized.parameters(2, 3, 5, 31, 100, 127, 128, 300, 3_000, 10**6)
    def test_batches_are_powers_of_two_within_the_images(self, images: int) -> None:
        for facts in (GPU, CPU):
            size = chosen(facts._replace(images=images))["pretrain.batch_size"]
            self.assertBetween(size, 2, min(images, 256))
            self.assertEqual(size & (size - 1), 0)
            self.assertGreaterEqual(images // size, 1 if images < 64 else 3 if images < 128 else 4)

    @parameterized.parameters((80e9, 256), (24e9, 256), (16e9, 128), (8e9, 64), (1e6, 2))
    def test_batches_fit_into_memory(self, memory: float, size: int) -> None:
        values = chosen(GPU._replace(images=10**6, memory=memory))
        self.assertEqual(values["pretrain.batch_size"], size)
        self.assertAlmostEqual(values["pretrain.learning_rate"], 0.03 * size / 256, places=6)

    @parameterized.parameters((8e9, 4, 256), (24e9, 3, 255), (24e9, 6, 252))
    def test_processes_share_a_batch(self, memory: float, processes: int, size: int) -> None:
        facts = GPU._replace(images=10**6, memory=memory, processes=processes)
        self.assertEqual(chosen(facts)["pretrain.batch_size"], size)

    def test_small_stems_need_more_memory(self) -> None:
        facts = GPU._replace(images=10**6, side=64, memory=4e9)
        with_stem = chosen(facts)["pretrain.batch_size"]
        without = chosen(facts, pretrain_small_stem=False)["pretrain.batch_size"]
        self.assertLess(with_stem, without)

    @parameterized.parameters(2, 100, 300, 3_000, 30_000, 300_000)
    def test_runs_are_neither_short_nor_longer_than_an_evening_on_a_cpu(self, images: int) -> None:
        for facts in (GPU._replace(images=images), CPU._replace(images=images)):
            values = chosen(facts)
            steps = images // values["pretrain.batch_size"] * values["schedule.epochs"]
            self.assertGreaterEqual(steps, 5_000)
            self.assertLessEqual(values["schedule.warmup_epochs"], values["schedule.epochs"] / 10)
            if not facts.on_gpu:
                self.assertLessEqual(steps, 10_000)

    def test_at_least_one_epoch(self) -> None:
        values = chosen(CPU._replace(images=10**7))
        self.assertEqual((values["schedule.epochs"], values["schedule.warmup_epochs"]), (1, 0.05))

    @parameterized.parameters(
        (GPU, 500, 224, False, 8),
        (GPU, 130, 128, False, None),
        (GPU, 96, 96, False, 8),
        (GPU, 64, 64, True, None),
        (GPU, 20, 32, True, None),
        (CPU, 500, 128, False, None),
        (CPU, 64, 128, False, None),
        (CPU, 32, 32, True, None),
    )
    def test_size_stem_and_pooling_follow_from_the_images(
        self, facts: Facts, side: int, size: int, small_stem: bool, pooling_map: int | None
    ) -> None:
        values = chosen(facts._replace(side=side))
        names = ("SIZE", "pretrain.small_stem", "jigsaw.pooling_map")
        self.assertEqual([values[name] for name in names], [size, small_stem, pooling_map])

    def test_later_choices_follow_bound_values(self) -> None:
        values = chosen(GPU, SIZE=64, pretrain_batch_size=32, schedule_epochs=40)
        self.assertEqual(
            (values["pretrain.small_stem"], values["jigsaw.pooling_map"]), (True, None)
        )
        self.assertEqual(values["pretrain.learning_rate"], 0.00375)
        self.assertEqual((values["schedule.warmup_epochs"], values["knn_evaluator.every"]), (2, 4))

    @parameterized.parameters(
        (GPU, 500, Architecture("resnet50", False), 224, 8),
        (GPU, 32, Architecture("resnet50", False), 64, None),
        (CPU, 32, Architecture("resnet50", False), 64, None),
        (CPU, 500, Architecture("resnet18", True), 64, None),
        (GPU, 500, Architecture("timm/convnext_tiny", False), 224, 8),
    )
    def test_initial_weights_determine_the_network(
        self, facts: Facts, side: int, weights: Architecture, size: int, pooling_map: int | None
    ) -> None:
        values = chosen(facts._replace(side=side, weights=weights))
        network = (values["pretrain.encoder"], values["pretrain.small_stem"])
        self.assertEqual(network, weights)
        self.assertEqual((values["SIZE"], values["jigsaw.pooling_map"]), (size, pooling_map))

    @parameterized.parameters(
        {"pretrain_encoder": "timm/convnext_tiny"}, {"pretrain_small_stem": False}
    )
    def test_images_are_large_enough_for_a_bound_network(self, **bound: Any) -> None:
        values = chosen(GPU._replace(side=32), **bound)
        self.assertEqual((values["SIZE"], values["pretrain.small_stem"]), (64, False))

    @parameterized.parameters(
        ("@sgd()", 0.03), ("@adamw()", 2.5e-4), ("@own/adamw()", 2.5e-4), ("@lars()", 0.3)
    )
    def test_learning_rate_is_that_of_the_optimizer(self, optimizer: str, usual: float) -> None:
        values = chosen(GPU._replace(images=10**6), pretrain_optimizer=optimizer)
        self.assertEqual(values["pretrain.learning_rate"], usual)
        values = chosen(GPU, pretrain_optimizer=optimizer)
        self.assertEqual(values["pretrain.learning_rate"], usual / 4)

    def test_learning_rate_of_an_unknown_optimizer_must_be_bound(self) -> None:
        with self.assertRaisesRegex(UserError, r"is @lion\(\): bind pretrain.learning_rate"):
            chosen(GPU, pretrain_optimizer="@lion()")
        chosen(GPU, pretrain_optimizer="@lion()", pretrain_learning_rate=0.1)

    def test_rejects_a_single_image(self) -> None:
        with self.assertRaisesRegex(UserError, "^there is 1 image to train on: use 2 or more"):
            chosen(GPU._replace(images=1))

    def test_every_choice_has_a_reason_in_one_line(self) -> None:
        left = list(folder_recipe.RULES)
        for facts in (GPU, CPU, GPU._replace(images=10**6, memory=8e9)):
            choices = folder_recipe.choose_training(facts, {"pretrain.optimizer": "@sgd()"}, left)
            for choice in choices:
                self.assertRegex(choice.reason, r"^[^\n]{5,100}$", choice.name)


class TableTest(absltest.TestCase):
    def test_documentation_shows_what_the_rules_choose(self) -> None:
        docs = Path(__file__).parents[2] / "docs"
        table = runpy.run_path(str(docs / "compare" / "folder_recipe.py"))["table"]()
        self.assertLen(table.splitlines(), 14)
        self.assertIn(f"\n\n{table}\n\n", (docs / "recipes.md").read_text())


if __name__ == "__main__":
    absltest.main()
