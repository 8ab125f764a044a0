"""Pixel counts and scores by hand, and against a plain loop over the pixels."""

import numpy as np
import torch
from absl.testing import absltest

from jigclu.ops.segmentation import IGNORED, count_pixels, to_scores, upsample
from jigclu.system.errors import UserError


class ScoresTest(absltest.TestCase):
    def test_counts_and_scores_by_hand(self) -> None:
        truth = torch.tensor([[0, 0, 1, IGNORED], [1, 1, 0, IGNORED]], dtype=torch.uint8)
        predicted = torch.tensor([[0, 1, 1, 0], [1, 2, 0, 3]])
        confusion = count_pixels(predicted, truth, 5)
        expected = torch.zeros(5, 5, dtype=torch.int64)
        expected[0, 0], expected[0, 1], expected[1, 1], expected[1, 2] = 2, 1, 2, 1
        self.assertTrue(torch.equal(confusion, expected))
        scores = to_scores(confusion)
        # Class 2 is only predicted, and counts; 3 is only predicted for ignored pixels.
        nan = float("nan")
        iou = torch.tensor([2 / 3, 2 / 4, 0.0, nan, nan], dtype=torch.float64)
        torch.testing.assert_close(scores.iou, iou, equal_nan=True)
        self.assertAlmostEqual(scores.mean_iou, (2 / 3 + 2 / 4 + 0) / 3)
        self.assertAlmostEqual(scores.pixel_accuracy, 4 / 6)

    def test_equals_a_loop_over_classes(self) -> None:
        random = np.random.default_rng(0)
        classes, total = 7, torch.zeros(7, 7, dtype=torch.int64)
        truths, predictions = [], []
        for _ in range(3):
            height, width = random.integers(5, 30, 2)
            truth = random.integers(0, classes - 1, (height, width)).astype(np.uint8)
            truth[random.random((height, width)) < 0.2] = IGNORED
            predicted = random.integers(0, classes, (height, width))
            total += count_pixels(torch.from_numpy(predicted), torch.from_numpy(truth), classes)
            truths.append(truth.ravel())
            predictions.append(predicted.ravel())
        truth, predicted = np.concatenate(truths), np.concatenate(predictions)
        counted = truth != IGNORED
        iou = [
            ((truth == number) & (predicted == number)).sum()
            / ((truth == number) | ((predicted == number) & counted)).sum()
            for number in range(classes)
        ]
        scores = to_scores(total)
        np.testing.assert_allclose(scores.iou.numpy(), iou)
        self.assertAlmostEqual(scores.mean_iou, np.mean(iou))
        self.assertAlmostEqual(scores.pixel_accuracy, (truth == predicted)[counted].mean())

    def test_perfect_predictions_score_1_although_a_class_is_absent(self) -> None:
        truth = torch.tensor([0, 2, 2, IGNORED], dtype=torch.uint8)
        scores = to_scores(count_pixels(torch.tensor([0, 2, 2, 1]), truth, 4))
        self.assertEqual((scores.mean_iou, scores.pixel_accuracy), (1.0, 1.0))

    def test_rejects_masks_without_a_class(self) -> None:
        truth = torch.full((4,), IGNORED, dtype=torch.uint8)
        with self.assertRaisesRegex(UserError, "val has no pixel with a class"):
            to_scores(count_pixels(torch.zeros(4, dtype=torch.int64), truth, 2))

    def test_upsampling_keeps_the_location_of_a_map(self) -> None:
        maps = torch.arange(4.0, dtype=torch.bfloat16).view(1, 1, 2, 2)
        logits = upsample(maps, 8, 8)
        self.assertEqual((logits.dtype, logits.shape), (torch.float32, (1, 1, 8, 8)))
        corners = logits[0, 0][::7, ::7]
        self.assertEqual(corners.tolist(), [[0, 1], [2, 3]])


if __name__ == "__main__":
    absltest.main()
