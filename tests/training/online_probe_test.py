"""The classifier that is trained alongside pre-training: by hand, resumed, and on two ranks."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest

from jigclu.data.sources import ImageArray
from jigclu.system.errors import UserError
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import metrics_file
from jigclu.training.online_probe import ACCURACY, LOSS, Labels, OnlineProbe, RunningProbe
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.samples import TinyEncoder
from tests.small_tasks import PRETRAINING, TaskTestCase, final, run_task

SETTINGS = OnlineProbe(learning_rate=0.1, momentum=0.9)
TASK = with_settings(PRETRAINING, online_probe=SETTINGS)
# Hardly changes the encoder: its training on small batches is chaotic, so that rounding would
# soon make two runs differ.
STILL = with_settings(TASK, learning_rate=1e-12)
CPU = torch.device("cpu")


def batches(start_step: int) -> Iterator[list[int]]:
    return iter([[2, 0], [1, 3]][start_step:])


# Four images of the classes 0, 1, 1, 0.
LABELS = Labels(torch.tensor([0, 1, 1, 0]), 2, batches)


def train(workdir: str, task: PretrainTask = TASK) -> dict[str, Any]:
    """Runs a task with an encoder of one convolution; returns its last checkpoint."""
    with mock.patch.object(PretrainTask, "new_encoder", lambda task: TinyEncoder()):
        run_task(task, Path(workdir))
    return final(Path(workdir))


class RunningProbeTest(absltest.TestCase):
    def test_one_step_by_hand(self) -> None:
        probe = RunningProbe(SETTINGS, LABELS, 3, 0, CPU)
        weight = probe.tensors["online_probe.fc.weight"][0].double().numpy().copy()
        features = torch.tensor([[1.0, 2.0, 6.0], [0.0, -1.0, 1.0], [3.0, 3.0, 0.0]])
        # Two rows of image 0 of the batch (class 1), one of image 1 (class 0); 3 of 4 rows.
        metrics = probe.train(0, features, torch.tensor([0, 0, 1]), 4)

        x = features.double().numpy()
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        logits = x @ weight.T
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        truth = np.eye(2)[[1, 1, 0]]
        loss = -(np.log(shares) * truth).sum() / 4
        correct = (logits.argmax(1) == [1, 1, 0]).sum() / 4
        gradient = (shares - truth).T @ x / 4
        self.assertAlmostEqual(metrics[LOSS].item(), loss, 5)
        self.assertAlmostEqual(metrics[ACCURACY].item(), correct, 6)
        moved = probe.tensors["online_probe.fc.weight"][0].double().numpy()
        np.testing.assert_allclose(moved, weight - 0.1 * gradient, rtol=0, atol=1e-6)
        momentum = probe.tensors["online_probe.momentum of fc.weight"][0].double().numpy()
        np.testing.assert_allclose(momentum, gradient, rtol=0, atol=1e-6)

    def test_learns_classes_that_features_tell_apart(self) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(8) % 2
        probe = RunningProbe(
            SETTINGS, Labels(labels, 2, lambda _: iter([list(range(8))] * 30)), 4, 0, CPU
        )
        centers = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        accuracies = []
        for step in range(30):
            noise = 0.1 * torch.randn(8, 4, generator=generator)
            metrics = probe.train(step, centers[labels] + noise, torch.arange(8), 8)
            accuracies.append(metrics[ACCURACY].item())
        self.assertEqual(accuracies[-1], 1.0)

    def test_a_bad_step_leaves_it_finite(self) -> None:
        probe = RunningProbe(SETTINGS, LABELS, 3, 0, CPU)
        probe.train(0, torch.full((2, 3), torch.nan), torch.tensor([0, 1]), 2)
        for value in probe.tensors.values():
            self.assertTrue(value.isfinite().all())


class PretrainingTest(TaskTestCase):
    def test_the_encoder_learns_as_without_it(self) -> None:
        with_probe = train(str(self.folder / "with"))
        without = train(str(self.folder / "without"), PRETRAINING)
        self.assert_tensors_close(with_probe["parameters"], without["parameters"], 0.0)
        added = set(with_probe["buffers"]) - set(without["buffers"])
        self.assertLen(added, 4)

    def test_a_resumed_run_equals_a_whole_one(self) -> None:
        whole = train(str(self.folder / "whole"))
        # Within an epoch.
        train(str(self.folder / "resumed"), with_settings(TASK, stop_after_steps=2))
        self.assert_same_training(train(str(self.folder / "resumed")), whole)

    def test_two_ranks_equal_one(self) -> None:
        whole = train(str(self.folder / "whole"), STILL)
        run_on_ranks(train, 2, str(self.folder / "two"), STILL)
        names = [name for name in whole["buffers"] if name.startswith("online_probe.")]
        two = final(self.folder / "two")["buffers"]
        self.assert_tensors_close(
            {name: two[name] for name in names}, {n: whole["buffers"][n] for n in names}, 1e-4
        )

    def test_reports_loss_and_accuracy_with_chance(self) -> None:
        train(str(self.folder))
        records = metrics_file.read(self.folder / "metrics.jsonl")
        for record in records:
            self.assertAlmostEqual(record[f"{LOSS}_chance"], math.log(10))
            # Of 14 images of 10 classes, the most frequent class has 2.
            self.assertAlmostEqual(record[f"{ACCURACY}_chance"], 2 / 14)
            self.assertBetween(record[ACCURACY], 0, 1)

    def test_needs_labels(self) -> None:
        unlabeled = ImageArray("x", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [], None)
        with self.assertRaisesRegex(UserError, "source has no labels, which online_probe needs"):
            with_settings(TASK, source=unlabeled)


if __name__ == "__main__":
    absltest.main()
