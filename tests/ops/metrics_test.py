"""Tests of jigclu.ops.metrics: counts and scores by hand."""

import torch
from absl.testing import absltest

from jigclu.ops import metrics

CPU = torch.device("cpu")


class ScoresTest(absltest.TestCase):
    def test_counts_and_scores_by_hand(self) -> None:
        logits = torch.tensor(
            [
                [9.0, 8, 7, 6, 5, 4, 3],  # class 0: correct
                [9.0, 8, 7, 6, 5, 4, 3],  # class 4: in the top five
                [9.0, 8, 7, 6, 5, 4, 3],  # class 5: not in the top five
                [3.0, 9, 4, 5, 6, 7, 8],  # class 1: correct
            ]
        )
        counts = metrics.add(metrics.no_counts(7, CPU), logits, torch.tensor([0, 4, 5, 1]))
        counts = metrics.add(counts, logits[:1], torch.tensor([4]))
        expected = torch.zeros(7, 7, dtype=torch.int64)
        expected[0, 0], expected[4, 0], expected[5, 0], expected[1, 1] = 1, 2, 1, 1
        self.assertTrue(torch.equal(counts.confusion, expected))
        top1, top5, per_class = metrics.to_scores(counts)
        self.assertAlmostEqual(top1, 2 / 5)
        self.assertAlmostEqual(top5, 4 / 5)
        nan = float("nan")
        torch.testing.assert_close(
            per_class,
            torch.tensor([1.0, 1.0, nan, nan, 0.0, 0.0, nan], dtype=torch.float64),
            equal_nan=True,
        )

    def test_top5_of_fewer_than_five_classes_is_1(self) -> None:
        counts = metrics.add(
            metrics.no_counts(3, CPU), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        )
        self.assertEqual(metrics.to_scores(counts).top5, 1.0)


if __name__ == "__main__":
    absltest.main()
