"""Fine-tuning equals a plain torch loop, also resumed and on two ranks; invalid settings."""

import itertools
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from absl.testing import absltest, parameterized
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2.functional import to_pil_image

from jigclu.data.folders import ImageFolder
from jigclu.data.procedural import ProceduralImages
from jigclu.data.sampler import GlobalBatchSampler
from jigclu.data.sources import ImageArray
from jigclu.data.subsets import BalancedSubset
from jigclu.ops import optim
from jigclu.system import collectives
from jigclu.system.errors import UserError
from jigclu.tasks.finetune import FinetuneTask
from jigclu.training.settings import Saving, with_settings
from jigclu.training.state import TrainState
from jigclu.training.step import StepResult, TrainingStep
from tests.ranks import run_on_ranks
from tests.samples import TinyEncoder, noise
from tests.small_tasks import LABELED, TaskTestCase, final, run_task

CONFIG = "finetune.seed = 0"
TASK = FinetuneTask(
    **(LABELED | {"saving": Saving(every=2, keep_last=1, keep_every=0)}),
    source=ProceduralImages(images=20, size=32, seed=0, split="train"),
    val=ProceduralImages(images=7, size=32, seed=0, split="val"),
    optimizer=optim.SGD(
        momentum=0.9, nesterov=False, weight_decay=0.0, decay_norms_and_biases=True
    ),
    learning_rate=1e-3,
    head_learning_rate=0.05,
)

ONE_CLASS = ImageArray("x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"], [0, 0])


def changed(**changes: Any) -> FinetuneTask:
    return with_settings(TASK, **changes)


def run(task: FinetuneTask, workdir: Path) -> str:
    return run_task(task, workdir, CONFIG)


def score_weights(path: str, workdir: str) -> dict[str, float]:
    """Evaluates the encoder of a file with an untrained head."""
    task = changed(init_from=path, learning_rate=1e-12, stop_after_steps=1)
    # A real step would change the statistics of batch normalization.
    with mock.patch.object(FinetuneTask, "_take_step", take_no_step):
        run(task, Path(workdir))
    collectives.barrier()
    scores: dict[str, float] = final(Path(workdir))["scores"][-1][1]
    return scores


def take_no_step(task: FinetuneTask, step: TrainingStep, state: TrainState, *_: Any) -> StepResult:
    return StepResult(state._replace(step=state.step + 1), {"loss": torch.zeros(())}, {})


class FinetuneTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        torch.manual_seed(3)
        self.resnet = torchvision.models.resnet18(num_classes=1000)
        self.resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.resnet.maxpool = nn.Identity()
        self.weights = self.folder / "resnet.pth"
        torch.save(self.resnet.state_dict(), self.weights)

    def test_equals_a_plain_loop(self) -> None:
        run(changed(init_from=str(self.weights)), self.folder / "run")
        # The initial head of the task; everything else is torch's own.
        network = TASK.network()
        self.resnet.fc = nn.Linear(512, 10)
        self.resnet.fc.load_state_dict(network.fc.state_dict())
        body = [p for name, p in self.resnet.named_parameters() if not name.startswith("fc.")]
        groups = [{"params": body, "lr": 1e-3}, {"params": self.resnet.fc.parameters(), "lr": 0.05}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        images = TASK.training_images()
        transform = TASK.eval_transform
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transform.mean, transform.std))
        sampler = GlobalBatchSampler(
            length=20, batch_size=8, rank=0, world_size=1, seed=0, start_step=0, total_steps=4
        )
        self.resnet.train()
        for step, batch in enumerate(sampler):
            if step == 2:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.1
            pixels, labels, *_ = zip(*(images[item] for item in batch), strict=True)
            logits = self.resnet((torch.stack(pixels).float() / 255 - mean) / std)
            optimizer.zero_grad()
            functional.cross_entropy(logits, torch.tensor(labels)).backward()
            optimizer.step()
        parameters = final(self.folder / "run")["parameters"]
        for name, value in self.resnet.named_parameters():
            ours = parameters[name if name.startswith("fc.") else f"encoder.{name}"]
            difference = (ours - value.detach()).norm() / value.norm().clamp_min(0.1)
            # In so small a batch, rounding sometimes flips a ReLU.
            self.assertLess(difference.item(), 2e-3, name)

    def test_writes_scores_curves_and_pictures(self) -> None:
        printed = run(TASK, self.folder)
        scores = final(self.folder)["scores"]
        self.assertEqual([step for step, _ in scores], [2, 4])
        top1, top5 = scores[-1][1]["top1"], scores[-1][1]["top5"]
        self.assertIn(f"top-1 {top1:.1%}, top-5 {top5:.1%} of 7 images of val", printed)
        events = self.events(self.folder)
        self.assertEqual([e.step for e in events.Scalars("accuracy/top1")], [2, 4])
        # Each image of val is of another class.
        self.assertAlmostEqual(events.Scalars("accuracy/top5_chance")[0].value, 5 / 7)
        self.assertAlmostEqual(events.Scalars("accuracy/top1_chance")[0].value, 1 / 7)
        self.assertEqual([e.step for e in events.Images("confusion")], [2, 4])
        self.assertContainsSubset(["accuracy_per_class/text_summary"], events.Tags()["tensors"])
        self.assertEqual([e.step for e in events.Scalars("loss/loss")], [1, 2, 3, 4])

    def test_every_image_of_val_counts_once_on_one_rank_and_on_two(self) -> None:
        alone = score_weights(str(self.weights), str(self.folder / "one"))
        right = alone["top1"] * 7
        self.assertAlmostEqual(right, round(right), places=5)
        arguments = (str(self.weights), str(self.folder / "two"))
        for rank in run_on_ranks(score_weights, 2, *arguments):
            self.assertEqual(rank, alone)

    def test_interrupted_and_resumed_equals_uninterrupted(self) -> None:
        run(TASK, self.folder / "whole")
        run(changed(stop_after_steps=2), self.folder / "parts")
        run(TASK, self.folder / "parts")
        whole, parts = final(self.folder / "whole"), final(self.folder / "parts")
        for name, value in whole["parameters"].items():
            self.assertTrue(torch.equal(parts["parameters"][name], value), name)
        self.assertEqual(parts["scores"], whole["scores"])

    def test_optimizer_is_unchanged_without_a_head_learning_rate(self) -> None:
        task = changed(head_learning_rate=None)
        self.assertIs(task.create_optimizer(task.network()), task.optimizer)

    def test_runs_compiled_in_half_precision(self) -> None:
        task = changed(compile=True, precision="bfloat16", stop_after_steps=2)
        with mock.patch.object(FinetuneTask, "new_encoder", lambda task: TinyEncoder()):
            printed = run(task, self.folder)
        self.assertIn("after 2 steps", printed)

    def test_class_names_that_are_not_utf_8_are_escaped_in_reports(self) -> None:
        """Folders of old archives; one of their images has a single color."""
        classes = (b"caf\xe9", b"cat")
        for split, name in itertools.product(("train", "val"), classes):
            folder = os.path.join(os.fsencode(self.folder), split.encode(), name)
            os.makedirs(folder)
            for index in range(4):
                pixels = noise(3, 32, 32) if index else torch.zeros(3, 32, 32, dtype=torch.uint8)
                with open(os.path.join(folder, b"\xe8%d.png" % index), "wb") as file:
                    to_pil_image(pixels).save(file, "PNG")
        source, val = (ImageFolder(str(self.folder), split) for split in ("train", "val"))
        task = changed(source=source, val=val, batch_size=4, epochs=1)
        with (
            mock.patch.object(FinetuneTask, "new_encoder", lambda task: TinyEncoder()),
            self.assertLogs(level="WARNING") as logs,
        ):
            run(task, self.folder / "run")
        table = self.events(self.folder / "run").Tensors("accuracy_per_class/text_summary")
        self.assertIn(rb"| caf\udce9 | ", table[0].tensor_proto.string_val[0])
        warnings = "\n".join(logs.output)
        self.assertIn("have one color: ", warnings)
        self.assertIn("(2 images so far)", warnings)
        self.assertIn("2 of 8 images have only one color", warnings)

    def test_trains_on_a_part_of_the_labels(self) -> None:
        task = changed(source=BalancedSubset(TASK.source, 0.5, seed=0), epochs=1)
        self.assertIn("data: 10 images, 10 classes", task.plan(Path("runs/none")))
        self.assertEqual(final_step(task, self.folder), 1)

    @parameterized.parameters(
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"head_learning_rate": -1.0}, "head_learning_rate is -1.0"),
        ({"val_batch_size": 0}, "val_batch_size is 0"),
        ({"std": (0.0, 1.0, 1.0)}, "std is .0.0, 1.0, 1.0."),
        ({"crop": 40}, "crop is 40"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
        ({"train_size": 0}, "train_size is 0"),
        ({"val": ONE_CLASS}, "source has 10 classes and val 1"),
        ({"source": ONE_CLASS, "val": ONE_CLASS}, "source only has images of class a"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            changed(**changes)

    @parameterized.parameters(
        ({"encoder": "resnet19"}, "resnet19"),
        ({"init_from": "none.pth"}, "none.pth does not exist"),
    )
    def test_mistakes_are_found_before_anything_is_written(
        self, changes: dict[str, Any], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            changed(**changes).check(self.folder / "run")
        self.assertFalse((self.folder / "run").exists())

    def test_rejects_an_encoder_of_another_width(self) -> None:
        task = changed(init_from=str(self.weights), encoder="resnet50")
        with self.assertRaisesRegex(
            UserError, "encoder = 'resnet18' and small_stem = True: bind .*of another shape"
        ):
            task.check(self.folder)


def final_step(task: FinetuneTask, workdir: Path) -> int:
    run(task, workdir)
    return int(final(workdir)["step"])


if __name__ == "__main__":
    absltest.main()
