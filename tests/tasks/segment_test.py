"""Segmentation learns colors, leaves a frozen encoder alone, and scores alike on any ranks."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image
from torch import Tensor, nn

from jigclu.data.segmentation import SegmentationFolders
from jigclu.methods.segmentation import SegmenterForward
from jigclu.ops import optim, schedules
from jigclu.system import collectives
from jigclu.system.errors import UserError
from jigclu.tasks.segment import SegmentTask
from jigclu.training.settings import Reporting, Saving, with_settings
from jigclu.training.step import StepResult
from tests.ranks import run_on_ranks
from tests.samples import TinyEncoder
from tests.small_tasks import SCHEDULE, TRAINING, TaskTestCase, final, run_task

CLASSES = ("dark", "red", "green", "blue")
COLORS = np.array([[20, 20, 20], [220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)
VOID = 7


def write_images(folder: Path, images: int, seed: int, classes: int) -> None:
    """Writes images of different sizes with two halves, whose color is their class."""
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(images):
        height, width = random.integers(24, 48, 2)
        left, right = random.choice(classes, 2, replace=False)
        mask = np.where(np.arange(width) < width // 2, left, right)
        mask = mask.astype(np.uint8)[None].repeat(height, 0)
        Image.fromarray(COLORS[mask]).save(folder / "images" / f"{number}.png")
        mask[:2] = VOID
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


def small_task(root: str, **changes: Any) -> SegmentTask:
    def source(split: str) -> SegmentationFolders:
        return SegmentationFolders(root, f"{split}/images", f"{split}/masks", CLASSES, VOID)

    task = SegmentTask(
        **TRAINING,
        source=source("train"),
        val=source("val"),
        batch_size=4,
        head="linear",
        dilated_stages=0,
        train_size=32,
        scale=(0.8, 1.25),
        flip_probability=0.5,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.2, 0.3),
        eval_resize=None,
        evaluate_every=0,
        optimizer=optim.SGD(
            momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms_and_biases=True
        ),
        learning_rate=0.05,
        schedule=SCHEDULE,
        saving=Saving(every=2, keep_last=1, keep_every=0),
        reporting=Reporting(log_every=2, picture_every=2),
    )
    return with_settings(task, **changes)


def run(task: SegmentTask, workdir: Path) -> str:
    """Runs a task with an encoder of one convolution, whose map is a quarter of the image."""
    with mock.patch.object(SegmentTask, "new_encoder", tiny_encoder):
        return run_task(task, workdir, "segment.seed = 0")


def tiny_encoder(task: SegmentTask, dilated_stages: int = 0) -> TinyEncoder:
    del task, dilated_stages
    return TinyEncoder(channels=32)  # The FCN head has a quarter of them.


def train_on_rank(root: str, head: str, workdir: str) -> list[Any]:
    run(small_task(root, head=head), Path(workdir))
    collectives.barrier()
    result = final(Path(workdir))
    return [result["scores"], result["parameters"]]


def perfect_logits(self: SegmenterForward, images: Tensor, height: int, width: int) -> Tensor:
    """Returns the class whose color is nearest, at full size."""
    del self
    assert images.shape[2:] == (height, width)
    distance = images[:, None].float() - torch.from_numpy(COLORS).float()[None, :, :, None, None]
    return -distance.square().sum(2)


class SegmentTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = str(self.folder / "data")
        write_images(self.folder / "data" / "train", 8, seed=0, classes=4)
        write_images(self.folder / "data" / "val", 5, seed=1, classes=3)

    def task(self, **changes: Any) -> SegmentTask:
        return small_task(self.root, **changes)

    @parameterized.parameters(("linear", 0.1), ("fcn", 0.05))
    def test_learns_the_colors_of_classes(self, head: str, rate: float) -> None:
        write_images(self.folder / "data" / "more", 8, seed=2, classes=4)
        val = SegmentationFolders(self.root, "more/images", "more/masks", CLASSES, VOID)
        decay = schedules.CosineDecay()
        task = self.task(head=head, val=val, epochs=30, decay=decay, every=1000, learning_rate=rate)
        printed = run(task, self.folder / "run")
        (step, scores) = final(self.folder / "run")["scores"][-1]
        self.assertEqual(step, 60)
        self.assertGreater(scores["mean_iou"], 0.75)
        self.assertGreater(scores["pixel_accuracy"], 0.85)
        self.assertIn(f"mIoU {scores['mean_iou']:.1%} of 4 classes, pixel accuracy", printed)

    def test_frozen_encoder_does_not_change(self) -> None:
        run(self.task(), self.folder)
        initial = self.initial_network().state_dict()
        result = final(self.folder)
        encoder = {name: value for name, value in initial.items() if name.startswith("encoder.")}
        self.assertContainsSubset(["encoder.bn1.running_mean"], encoder)
        found = {name: result["buffers"][name] for name in encoder}
        self.assert_tensors_close(found, encoder, 0.0)
        self.assertTrue(all(name.startswith("head.") for name in result["parameters"]))
        self.assertFalse(
            torch.equal(result["parameters"]["head.1.weight"], initial["head.1.weight"])
        )

    def test_fine_tuning_changes_the_encoder(self) -> None:
        run(self.task(head="fcn"), self.folder)
        initial = self.initial_network().state_dict()
        result = final(self.folder)
        for part, name in (
            ("parameters", "encoder.conv1.weight"),
            ("buffers", "encoder.bn1.running_mean"),
        ):
            self.assertFalse(torch.equal(result[part][name], initial[name]), name)

    def initial_network(self) -> nn.Module:
        with mock.patch.object(SegmentTask, "new_encoder", tiny_encoder):
            return self.task().network()

    def test_perfect_predictions_score_1_without_ignored_pixels(self) -> None:
        # Of the four classes, val shows three.
        task = self.task(stop_after_steps=1)
        with (
            mock.patch.object(SegmentTask, "_take_step", take_no_step),
            mock.patch.object(SegmenterForward, "logits", perfect_logits),
        ):
            printed = run(task, self.folder / "run")
        scores = final(self.folder / "run")["scores"][-1][1]
        names = ("mean_iou", "pixel_accuracy", "iou/dark", "iou/red", "iou/green")
        self.assertEqual(scores, dict.fromkeys(names, 1.0))
        self.assertIn("mIoU 100.0% of 3 classes (neither in masks nor predicted: blue)", printed)

    def test_writes_scores_and_pictures(self) -> None:
        run(self.task(evaluate_every=1), self.folder)
        events = self.events(self.folder)
        for name in ("mean_iou", "pixel_accuracy", "iou/dark"):
            self.assertEqual([e.step for e in events.Scalars(f"accuracy/{name}")], [2, 4])
        for tag in ("predictions/0", "predictions/3", "confusion"):
            self.assertEqual([event.step for event in events.Images(tag)], [2, 4])
        with Image.open(self.folder / "data/val/images/0.png") as image:
            width, height = image.size
        picture = events.Images("predictions/0")[0]
        self.assertEqual((picture.width, picture.height), (3 * width, height))
        self.assertEqual([event.step for event in events.Images("inputs")], [0, 2])
        self.assertContainsSubset(["iou_per_class/text_summary"], events.Tags()["tensors"])

    @parameterized.parameters("linear", "fcn")
    def test_two_ranks_train_and_score_like_one(self, head: str) -> None:
        alone = train_on_rank(self.root, head, str(self.folder / "one"))
        ranks = run_on_ranks(train_on_rank, 2, self.root, head, str(self.folder / "two"))
        for scores, parameters in ranks:
            self.assert_tensors_close(parameters, alone[1], 1e-4)
            ours, theirs = scores[-1][1], alone[0][-1][1]
            self.assertEqual(list(ours), list(theirs))
            for name, value in theirs.items():
                self.assertAlmostEqual(ours[name], value, places=3)

    @parameterized.parameters("linear", "fcn")
    def test_interrupted_and_resumed_equals_uninterrupted(self, head: str) -> None:
        run(self.task(head=head), self.folder / "whole")
        # In the middle of the first epoch.
        run(self.task(head=head, stop_after_steps=1), self.folder / "parts")
        run(self.task(head=head), self.folder / "parts")
        whole, parts = final(self.folder / "whole"), final(self.folder / "parts")
        self.assert_same_training(parts, whole)
        self.assertEqual(parts["scores"][-1], whole["scores"][-1])

    def test_evaluation_size_may_change_on_resume_but_not_the_head(self) -> None:
        run(self.task(stop_after_steps=1), self.folder / "run")
        self.task(eval_resize=16, evaluate_every=1).check(self.folder / "run")
        with self.assertRaisesRegex(UserError, "head was 'linear' and is 'fcn'"):
            self.task(head="fcn").check(self.folder / "run")

    def test_runs_compiled_in_half_precision(self) -> None:
        task = self.task(compile=True, precision="bfloat16", head="fcn", stop_after_steps=2)
        self.assertIn("after 2 steps", run(task, self.folder / "run"))

    def test_evaluates_resized_images_at_the_size_of_their_masks(self) -> None:
        # With a real encoder, whose map is an eighth of the image.
        run_task(self.task(head="fcn", eval_resize=20, stop_after_steps=1), self.folder / "run")
        self.assertLen(final(self.folder / "run")["scores"], 1)

    def test_plan_shows_classes_and_network(self) -> None:
        plan = self.task().plan(self.folder)
        self.assertIn("data: 8 images, masks of 4 classes", plan)
        self.assertIn("trained: a linear head on a frozen resnet18, on crops of 32x32", plan)

    @parameterized.parameters(
        ({"head": "mlp"}, "head is 'mlp'; it must be 'linear' or 'fcn'"),
        ({"train_size": 0}, "train_size is 0"),
        ({"eval_resize": 0}, "eval_resize is 0"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"std": (0.0, 1.0, 1.0)}, "std is"),
        ({"scale": (0.0, 1.0)}, "scale is"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            self.task(**changes)

    def test_rejects_sources_that_do_not_match(self) -> None:
        train, val = "train/images", "train/masks"
        other = SegmentationFolders(self.root, train, val, 3, VOID)
        with self.assertRaisesRegex(UserError, "source has 4 classes and val 3"):
            self.task(val=other)
        same = SegmentationFolders(self.root, train, val, CLASSES, VOID)
        with self.assertRaisesRegex(UserError, "is in both source and val"):
            self.task(val=same)

    def test_mistakes_are_found_before_anything_is_written(self) -> None:
        bad = self.folder / "data" / "val" / "masks" / "4.png"
        for changes, message in (
            ({"dilated_stages": 1}, "dilated_stages is 1; it must be 0 for resnet18"),
            ({"init_from": "none.pth"}, "none.pth does not exist"),
            ({}, "val: mask .*4.png has the value 4"),
        ):
            Image.fromarray(np.full((24, 24), 4, np.uint8)).save(bad)
            with self.assertRaisesRegex(UserError, message):
                self.task(**changes).check(self.folder / "run")
        self.assertFalse((self.folder / "run").exists())


def take_no_step(task: SegmentTask, step: Any, state: Any, *_: Any) -> StepResult:
    return StepResult(state._replace(step=state.step + 1), {"loss": torch.zeros(())}, {})


if __name__ == "__main__":
    absltest.main()
