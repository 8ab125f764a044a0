"""What evaluations show beside their scores, on the main rank only."""

from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from jigclu.data.images import ImageDataset
from jigclu.data.procedural import ProceduralImages
from jigclu.data.sources import Source
from jigclu.ops.pictures import confusion_picture
from jigclu.training import evaluation_report
from jigclu.training.evaluation_report import EvaluationReport, choose_evenly
from jigclu.training.monitor import Monitor
from tests.small_tasks import EVAL_TRANSFORM, TaskTestCase


def images(split: str) -> ImageDataset:
    source: Source = ProceduralImages(images=20, size=32, seed=0, split=split)
    return ImageDataset(source=source, transform=EVAL_TRANSFORM)


class EvaluationReportTest(TaskTestCase, parameterized.TestCase):
    def report(self, is_main: bool = True) -> EvaluationReport:
        monitor = Monitor.of_one_step(self.folder, is_main)
        return EvaluationReport(self.enter_context(monitor), 0)

    def test_confusion_has_the_names_of_the_classes(self) -> None:
        report, confusion = self.report(), torch.tensor([[3, 1], [0, 2]])
        report.confusion("mine", confusion, ["cat", "dog"])
        shown = pil_to_tensor(Image.open(self.folder / "pictures" / "mine.png"))
        self.assertTrue(torch.equal(shown, confusion_picture(confusion, ["cat", "dog"])))

    def test_neighbors_are_right_if_they_are_of_the_querys_class(self) -> None:
        # Classes take turns: there are ten.
        queries, bank = images("val"), images("train")
        with mock.patch.object(evaluation_report, "neighbors_picture") as draw:
            draw.return_value = torch.zeros(3, 4, 4, dtype=torch.uint8)
            self.report().neighbors("near", queries, bank, {3: [13, 4], 15: [3, 5]})
        shown, neighbors, right = draw.call_args.args
        self.assertEqual(right.tolist(), [[True, False], [False, True]])
        self.assertTrue(torch.equal(shown[1], queries[15].image))
        self.assertTrue(torch.equal(neighbors[0, 1], bank[4].image))

    def test_embedding_has_features_classes_and_thumbnails(self) -> None:
        features = torch.tensor([[0.25, -1.0], [0.123456, 3.0], [1.0, 0.0]])
        report = self.report()
        self.assertTrue(report.is_last)
        for _ in range(2):  # The second one, of a run that was repeated, takes the place.
            report.embedding("near", images("val"), [0, 11, 5], features)
        folder = self.folder / "tensorboard"
        self.assertIn('"00000/near/tensors.tsv"', (folder / "projector_config.pbtxt").read_text())
        lines = (folder / "00000" / "near" / "tensors.tsv").read_text().splitlines()
        self.assertEqual(lines, ["0.25\t-1.0", "0.1235\t3.0", "1.0\t0.0"])
        classes = images("val").source.classes
        names = (folder / "00000" / "near" / "metadata.tsv").read_text().splitlines()
        self.assertEqual(names, [classes[0], classes[1], classes[5]])
        sprite = pil_to_tensor(Image.open(folder / "00000" / "near" / "sprite.png"))
        self.assertEqual(sprite.shape, (3, 64, 64))
        self.assertLessEqual((sprite[:, :32, 32:].int() - images("val")[11].image).abs().max(), 1)

    def test_other_ranks_read_and_write_nothing(self) -> None:
        report = self.report(is_main=False)
        with mock.patch.object(ImageDataset, "__getitem__", side_effect=AssertionError):
            report.neighbors("near", images("val"), images("train"), {3: [13, 4]})
            report.embedding("near", images("val"), [0], torch.zeros(1, 2))
        report.confusion("mine", torch.eye(2, dtype=torch.int64), ["cat", "dog"])
        self.assertEmpty(list(self.folder.iterdir()))

    @parameterized.parameters(
        (10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (500, 2, [0, 250]), (0, 8, [])
    )
    def test_chooses_evenly(self, count: int, most: int, expected: list[int]) -> None:
        self.assertEqual(choose_evenly(count, most), expected)


if __name__ == "__main__":
    absltest.main()
