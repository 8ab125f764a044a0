"""Counts against hand-computed ones, and of seven images on one rank and two."""

import torch
from absl.testing import absltest

from jigclu.ops import metrics
from jigclu.system import collectives
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")


def seven_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 6, generator=generator), torch.randint(6, (7,), generator=generator)


def counts_of_seven() -> list[torch.Tensor]:
    """Counts seven images, each on one rank alone; a batch of two at a time."""
    logits, labels = seven_images()
    own = slice(collectives.rank(), None, collectives.world_size())
    counts = metrics.no_counts(6, CPU)
    for batch in zip(logits[own].split(2), labels[own].split(2), strict=True):
        counts = metrics.add(counts, *batch)
    return list(metrics.total_over_ranks(counts))


class ScoresTest(absltest.TestCase):
    def test_hand_computed(self) -> None:
        logits = torch.tensor(
            [
                [9.0, 8, 7, 6, 5, 4, 3],  # class 0: right
                [9.0, 8, 7, 6, 5, 4, 3],  # class 4: in the top five
                [9.0, 8, 7, 6, 5, 4, 3],  # class 5: not
                [3.0, 9, 4, 5, 6, 7, 8],  # class 1: right
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

    def test_fewer_than_five_classes_are_all_in_the_top(self) -> None:
        counts = metrics.add(
            metrics.no_counts(3, CPU), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        )
        self.assertEqual(metrics.to_scores(counts).top5, 1.0)

    def test_every_image_counts_once_on_one_rank_and_on_two(self) -> None:
        alone = counts_of_seven()
        self.assertEqual(alone[0].sum().item(), 7)
        logits, labels = seven_images()
        right = int((logits.argmax(1) == labels).sum())
        self.assertEqual(alone[0].diagonal().sum().item(), right)
        for rank in run_on_ranks(counts_of_seven, 2):
            for ours, expected in zip(rank, alone, strict=True):
                self.assertTrue(torch.equal(ours, expected))


if __name__ == "__main__":
    absltest.main()
