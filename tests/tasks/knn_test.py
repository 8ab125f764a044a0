"""The score of a file's weights, as a task of its own."""

import contextlib
import dataclasses
import io
from pathlib import Path

import torch
from absl.testing import absltest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jigclu.data.procedural import ProceduralImages
from jigclu.models import encoder
from jigclu.system.errors import UserError
from jigclu.tasks.knn import KnnTask
from jigclu.training import knn_evaluator

TASK = KnnTask(
    evaluation=knn_evaluator.KnnEvaluation(
        bank=ProceduralImages(images=40, size=32, seed=0, split="train"),
        queries=ProceduralImages(images=20, size=32, seed=0, split="val"),
        resize=32,
        crop=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        neighbors=3,
        temperature=0.07,
        batch_size=10,
        workers=0,
    ),
    init_from=None,
    seed=3,
    encoder="resnet18",
    small_stem=True,
    device="cpu",
    precision="float32",
)


class KnnTaskTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        torch.manual_seed(5)
        self.encoder = encoder.create_encoder("resnet18", True)
        self.weights = self.folder / "weights.pth"
        torch.save(self.encoder.state_dict(), self.weights)

    def run_task(self, task: KnnTask) -> tuple[str, float]:
        task.check(self.folder, "")
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            task.run(self.folder, "a = 1")
        events = EventAccumulator(str(self.folder / "tensorboard"))
        events.Reload()
        return printed.getvalue(), events.Scalars("knn_accuracy")[-1].value

    def test_scores_the_weights_of_the_file(self) -> None:
        printed, accuracy = self.run_task(dataclasses.replace(TASK, init_from=str(self.weights)))
        expected = TASK.evaluation(self.encoder, torch.float32)
        self.assertAlmostEqual(accuracy, expected.accuracy, places=6)
        self.assertIn(
            f"kNN accuracy {expected.accuracy:.2%}, chance {expected.chance:.2%}", printed
        )
        self.assertIn(f"initial weights of {self.weights}: loaded 100 tensors", printed)

    def test_says_that_weights_are_random(self) -> None:
        printed, _ = self.run_task(TASK)
        self.assertIn("no init_from: random weights of seed 3", printed)

    def test_finds_other_weights_before_it_runs(self) -> None:
        task = dataclasses.replace(TASK, init_from=str(self.weights), small_stem=False)
        with self.assertRaisesRegex(UserError, "conv1.weight"):
            task.check(self.folder, "")


if __name__ == "__main__":
    absltest.main()
