"""Tests of jigclu.tasks.benchmark.short_training."""

import dataclasses
import itertools
import time
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.data.procedural import ProceduralImages
from jigclu.tasks.benchmark.short_training import measure_training
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.knn_evaluator import KnnEvaluation
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = dataclasses.replace(
    PretrainTask(**PRETRAINING | {"small_stem": False}),
    evaluation=KnnEvaluation(
        bank=ProceduralImages(images=20, size=32, seed=0, split="train"),
        queries=ProceduralImages(images=10, size=32, seed=0, split="val"),
        resize=32,
        crop=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        neighbors=2,
        temperature=0.07,
        batch_size=10,
        workers=0,
    ),
)


class ShortTrainingTest(absltest.TestCase):
    def test_the_clock_ends_the_training(self) -> None:
        ticks = itertools.count(0.0, 10.0)
        with mock.patch.object(time, "perf_counter", lambda: next(ticks)):
            table = measure_training(TASK, 20.0, CPU)
        figures = dict(table.rows)
        # The clock is read once at the start and after every step: 0, 10, 20.
        self.assertEqual(figures["steps"], 2)
        self.assertAlmostEqual(figures["epochs"], 2 / 3)
        self.assertEqual(figures["seconds"], 30.0)
        self.assertAlmostEqual(figures["images/s"], 2 * 4 / 30)
        self.assertAlmostEqual(figures["kNN accuracy of chance, %"], 10)
        for name in ("kNN accuracy before, %", "kNN accuracy after, %"):
            self.assertBetween(figures[name], 0, 100)
        self.assertGreater(figures["loss of the last step"], 0)


if __name__ == "__main__":
    absltest.main()
