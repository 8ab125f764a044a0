"""The kNN task: accuracy of the weights of a file."""

import dataclasses

import torch
from absl.testing import absltest

from jigclu.data.procedural import ProceduralImages
from jigclu.models import encoder
from jigclu.system.errors import UserError
from jigclu.tasks.knn import KnnTask
from jigclu.training.encoder_task import resolve_encoder
from jigclu.training.settings import with_settings
from tests.small_tasks import COMPUTE, KNN, TaskTestCase, run_task

TASK = KnnTask(
    evaluator=with_settings(
        KNN,
        bank=ProceduralImages(images=40, size=32, seed=0, split="train"),
        queries=ProceduralImages(images=20, size=32, seed=0, split="val"),
    ),
    init_from=None,
    seed=3,
    encoder="resnet18",
    small_stem=True,
    compute=COMPUTE,
)


class KnnTaskTest(TaskTestCase):
    def setUp(self) -> None:
        super().setUp()
        torch.manual_seed(5)
        self.encoder = encoder.create_encoder("resnet18", True)
        self.weights = self.folder / "weights.pth"
        torch.save(self.encoder.state_dict(), self.weights)

    def run_knn(self, task: KnnTask) -> tuple[str, float]:
        """Returns what the task printed, and the accuracy in TensorBoard."""
        printed = run_task(task, self.folder, "a = 1")
        return printed, self.events(self.folder).Scalars("accuracy/knn_accuracy")[-1].value

    def test_scores_the_weights_of_the_file(self) -> None:
        task = dataclasses.replace(
            TASK, init_from=str(self.weights), encoder="auto", small_stem="auto"
        )
        task = resolve_encoder(task, self.folder)
        self.assertStartsWith(task.plan(self.folder), "encoder: resnet18 with a small stem\n")
        printed, accuracy = self.run_knn(task)
        expected = TASK.evaluator(self.encoder, torch.float32)
        self.assertAlmostEqual(accuracy, expected["knn_accuracy"], places=6)
        self.assertIn(
            "kNN accuracy {knn_accuracy:.1%}, chance {knn_accuracy_chance:.1%}".format(**expected),
            printed,
        )
        held = "encoder = 'resnet18' and small_stem = True: loaded 100 tensors"
        self.assertIn(f"initial weights of {self.weights}, {held}", printed)

    def test_rejects_a_seed_that_torch_does_not_accept(self) -> None:
        for seed in (-1, 2**63):
            with self.assertRaisesRegex(UserError, f"^seed is {seed}; it must be in"):
                dataclasses.replace(TASK, seed=seed)

    def test_reports_random_weights(self) -> None:
        printed, _ = self.run_knn(TASK)
        self.assertIn("no init_from: random weights of seed 3", printed)

    def test_check_rejects_weights_of_another_encoder(self) -> None:
        task = dataclasses.replace(TASK, init_from=str(self.weights), small_stem=False)
        with self.assertRaisesRegex(UserError, "conv1.weight"):
            task.check(self.folder)


if __name__ == "__main__":
    absltest.main()
