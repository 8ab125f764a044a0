"""Linear evaluation equals a plain torch loop; sweeps, cached features, two ranks."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from absl.testing import absltest, parameterized
from torch import Tensor, nn
from torch.nn import functional

from jigclu.data.procedural import ProceduralImages
from jigclu.models.encoder import create_encoder
from jigclu.ops.schedules import StepDecay
from jigclu.system import collectives
from jigclu.system.errors import UserError
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.linear import LinearTask
from jigclu.training import initial_weights
from jigclu.training.settings import Saving, with_settings
from tests.ranks import run_on_ranks
from tests.samples import TinyEncoder
from tests.small_tasks import LABELED, TaskTestCase, final, run_task

CONFIG = "linear.seed = 0"
TASK = LinearTask(
    **(LABELED | {"saving": Saving(every=5, keep_last=1, keep_every=0)}),
    source=ProceduralImages(images=40, size=32, seed=0, split="train"),
    val=ProceduralImages(images=17, size=32, seed=0, split="val"),
    learning_rates=(0.1,),
    weight_decays=(0.0,),
    momentum=0.9,
    held_out=0.25,
    cache=None,
)
SWEEP: dict[str, Any] = {"learning_rates": (0.1, 1e-4, 1e30), "weight_decays": (0.0, 0.01)}


def changed(**changes: Any) -> LinearTask:
    return with_settings(TASK, **changes)


def run(task: LinearTask, workdir: Path) -> str:
    return run_task(task, workdir, CONFIG)


def run_on_rank(workdir: str, cache: str | None) -> tuple[Tensor, list[Any]]:
    """Trains, and returns the last weights and all scores."""
    run(changed(cache=cache and FeatureCache(folder=cache, views=1)), Path(workdir))
    collectives.barrier()
    contents = final(Path(workdir))
    return contents["parameters"]["fc.weight"], contents["scores"]


class LinearTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        torch.manual_seed(3)
        self.resnet = torchvision.models.resnet18()
        self.resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.resnet.maxpool = nn.Identity()
        self.resnet.fc = nn.Identity()
        self.weights = self.folder / "resnet.pth"
        torch.save(self.resnet.state_dict(), self.weights)

    def features(self, images: list[Tensor]) -> Tensor:
        transform = TASK.eval_transform
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
        with torch.no_grad():
            features: Tensor = self.resnet.eval()((torch.stack(images).float() / 255 - mean) / std)
        return features

    def test_equals_a_plain_loop(self) -> None:
        workdir = self.folder / "run"
        run(changed(init_from=str(self.weights)), workdir)
        layer = nn.Linear(512, 10)
        with torch.no_grad():
            torch.manual_seed(0)
            create_encoder("resnet18", True)  # The classifier is drawn after the encoder.
            layer.weight.copy_(torch.empty(10, 512).normal_(0, 0.01))
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, 0.9)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5], 0.1)
        images = TASK.training_images()
        for batch in TASK.sampler(0):
            pixels, labels, *_ = zip(*(images[item] for item in batch), strict=True)
            optimizer.zero_grad()
            logits = layer(self.features(list(pixels)))
            functional.cross_entropy(logits, torch.tensor(labels)).backward()
            optimizer.step()
            scheduler.step()
        contents = final(workdir)
        torch.testing.assert_close(
            contents["parameters"]["fc.weight"][0], layer.weight.detach(), rtol=1e-3, atol=1e-5
        )
        logits = layer(self.features([TASK.val.read(index) for index in range(17)]))
        truth = torch.tensor(TASK.val.labels)
        top5 = (logits.topk(5).indices == truth[:, None]).any(1).double().mean().item()
        score = contents["scores"][-1][1]
        self.assertAlmostEqual(score["top1"], (logits.argmax(1) == truth).double().mean().item())
        self.assertAlmostEqual(score["top5"], top5)

    def test_encoder_stays_unchanged(self) -> None:
        workdir = self.folder / "run"
        printed = run(changed(init_from=str(self.weights)), workdir)
        self.assertIn("loaded 100 tensors", printed)
        kept = initial_weights.read(str(workdir)).tensors
        for name, value in initial_weights.read(str(self.weights)).tensors.items():
            self.assertTrue(torch.equal(kept[name], value), name)

    def test_sweep_evaluates_the_probe_that_is_best_on_held_out_images(self) -> None:
        workdir = self.folder / "run"
        task = changed(**SWEEP)
        printed = run(task, workdir)
        self.assertIn("data: 30 images", task.plan(Path("runs/none")))
        score = final(workdir)["scores"][-1][1]
        self.assertEqual(
            score["best_learning_rate"], 0.1
        )  # Neither 1e-4 nor the rate that diverges.
        self.assertIn("the best of 6 probes on 10 held-out training images", printed)
        self.assertNotIn("of the sweep", printed)
        names = {task.training_source.name(index) for index in range(len(task.training_source))}
        self.assertLen(names, 30)
        compared = (task.comparison_source.name(index) for index in range(10))
        self.assertEmpty(names.intersection(compared))

    @parameterized.parameters(
        ((0.1, 1e30), "the best learning rate is the lowest of the sweep, 0.1: add lower ones"),
        ((0.1, 1e-4), "the best learning rate is the highest of the sweep, 0.1: add higher ones"),
    )
    def test_says_if_the_best_rate_is_at_the_end_of_a_sweep(
        self, rates: tuple[float, ...], expected: str
    ) -> None:
        printed = run(changed(learning_rates=rates), self.folder / "run")
        self.assertIn(expected, printed)

    def test_probes_of_a_sweep_train_independently(self) -> None:
        run(changed(**SWEEP), self.folder / "together")
        together = final(self.folder / "together")["parameters"]["fc.weight"]
        # A smaller sweep, with the same training images and one probe in common.
        run(changed(learning_rates=(0.1,), weight_decays=(0.01, 0.5)), self.folder / "two")
        two = final(self.folder / "two")["parameters"]["fc.weight"]
        torch.testing.assert_close(two[0], together[1])
        self.assertFalse(torch.equal(two[1], together[1]))

    def test_cached_features_leave_nothing_to_compile(self) -> None:
        cache = FeatureCache(folder=str(self.folder / "cache"), views=0)
        with mock.patch("shutil.which", lambda name: None):
            printed = run(changed(cache=cache, compile=True), self.folder / "run")
            self.assertNotIn("compiling", printed)
            with self.assertRaisesRegex(UserError, "no C.. compiler"):
                run(changed(compile=True), self.folder / "run")

    @parameterized.parameters(0, 2)
    def test_cached_features_equal_encoded_images(self, views: int) -> None:
        """Two epochs with two cached views equal two epochs of images."""
        cache = FeatureCache(folder=str(self.folder / "cache"), views=views)
        run(changed(cache=cache), self.folder / "cached")
        cached = final(self.folder / "cached")
        self.assertLen(list((self.folder / "cache").iterdir()), 1 + max(views, 1))
        run(TASK if views else changed(**WITHOUT_AUGMENTATION), self.folder / "images")
        images = final(self.folder / "images")
        difference = cached["parameters"]["fc.weight"] - images["parameters"]["fc.weight"]
        # float16 has eleven bits of precision.
        self.assertLess((difference.norm() / images["parameters"]["fc.weight"].norm()).item(), 1e-2)
        self.assertEqual(cached["scores"], images["scores"])

    def test_a_stale_cache_is_not_used(self) -> None:
        folder = self.folder / "cache"
        cache = FeatureCache(folder=str(folder), views=0)
        run(changed(cache=cache), self.folder / "a")
        before = set(folder.iterdir())
        self.assertLen(before, 2)
        run(changed(cache=cache, learning_rates=(0.5,)), self.folder / "b")
        self.assertEqual(set(folder.iterdir()), before)
        others: tuple[dict[str, Any], ...] = (
            {"init_from": str(self.weights)},
            {"resize": 40},
            {"mean": (0.5, 0.5, 0.5)},
            {"precision": "bfloat16"},
            {"source": ProceduralImages(images=41, size=32, seed=0, split="train")},
        )
        for number, changes in enumerate(others):
            count = len(list(folder.iterdir()))
            flat = StepDecay(milestones=(), factor=1.0)
            task = changed(cache=cache, epochs=1, decay=flat, **changes)
            run(task, self.folder / str(number))
            self.assertGreater(len(list(folder.iterdir())), count, changes)

    @parameterized.parameters(False, True)
    def test_two_ranks_equal_one(self, cached: bool) -> None:
        folders = [str(self.folder / f"cache{ranks}") if cached else None for ranks in (1, 2)]
        weight, scores = run_on_rank(str(self.folder / "one"), folders[0])
        arguments = (str(self.folder / "two"), folders[1])
        for rank_weight, rank_scores in run_on_ranks(run_on_rank, 2, *arguments):
            torch.testing.assert_close(rank_weight, weight, rtol=1e-3, atol=1e-5)
            self.assertEqual(rank_scores, scores)

    def test_interrupted_and_resumed_equals_uninterrupted(self) -> None:
        task = changed(init_from=str(self.weights))
        run(task, self.folder / "whole")
        run(with_settings(task, stop_after_steps=5), self.folder / "parts")
        run(task, self.folder / "parts")
        whole, parts = (final(self.folder / name) for name in ("whole", "parts"))
        for name in ("parameters", "buffers"):
            for key, value in whole[name].items():
                self.assertTrue(torch.equal(parts[name][key], value), key)
        self.assertEqual(parts["scores"], whole["scores"])

    def test_reports_confusions_and_accuracy_per_class(self) -> None:
        with mock.patch.object(LinearTask, "new_encoder", lambda task: TinyEncoder()):
            run(changed(evaluate_every=0, compile=True), self.folder)
        events = self.events(self.folder)
        self.assertEqual([e.step for e in events.Scalars("accuracy/top5")], [10])
        self.assertEqual([e.step for e in events.Images("confusion")], [10])
        (text,) = events.Tensors("accuracy_per_class/text_summary")
        table = text.tensor_proto.string_val[0].decode()
        self.assertRegex(table, r"\| \d+\.\d% \| [12] \|\n")
        self.assertIn("rows are true classes, columns predicted classes", table)

    @parameterized.parameters(
        ({"learning_rates": ()}, r"learning_rates is \(\); it must be one or more"),
        ({"learning_rates": (0.1, 0.1)}, "one or more different numbers"),
        ({"learning_rates": (0.1, 0.2), "held_out": 1.0}, "held_out is 1.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"train_size": 0}, "train_size is 0"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            changed(**changes)

    def test_resumes_without_the_file_of_initial_weights(self) -> None:
        task = changed(init_from=str(self.weights))
        run(task, self.folder / "whole")
        run(with_settings(task, stop_after_steps=5), self.folder / "parts")
        self.weights.unlink()
        printed = run(task, self.folder / "parts")
        self.assertIn("step_00000005.pt at step 5", printed)
        self.assert_same_training(final(self.folder / "parts"), final(self.folder / "whole"))
        with self.assertRaisesRegex(UserError, "resnet.pth does not exist"):
            task.check(self.folder / "new")

    def test_draws_training_images_but_not_features(self) -> None:
        run(changed(picture_every=5), self.folder / "images")
        self.assertEqual(
            [e.step for e in self.events(self.folder / "images").Images("inputs")], [0, 5]
        )
        cache = FeatureCache(folder=str(self.folder / "cache"), views=0)
        run(changed(picture_every=5, cache=cache), self.folder / "features")
        self.assertNotIn("inputs", self.events(self.folder / "features").Tags()["images"])

    def test_rejects_a_cache_folder_that_cannot_be_written(self) -> None:
        (self.folder / "file").write_text("")
        cache = FeatureCache(folder=str(self.folder / "file"), views=0)
        with self.assertRaisesRegex(UserError, "use another feature_cache.folder"):
            run(changed(cache=cache), self.folder / "run")


# The whole image, as in evaluation.
WITHOUT_AUGMENTATION: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip_probability": 0.0,
}


if __name__ == "__main__":
    absltest.main()
