"""Counts of correct classifications on one rank and on two."""

import torch
from absl.testing import absltest

from jigclu.system import collectives
from jigclu.tasks.supervised import evaluate_probe
from tests.ranks import run_on_ranks


def seven_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 6, generator=generator), torch.randint(6, (7,), generator=generator)


def counts_of_seven() -> list[torch.Tensor]:
    """Counts seven images in batches of two, each on only one rank."""
    logits, labels = seven_images()
    own = slice(collectives.rank(), None, collectives.world_size())
    batches = zip(logits[own].split(2), labels[own].split(2), strict=True)
    return list(evaluate_probe(batches, torch.nn.Identity(), 6, torch.device("cpu")))


class EvaluateProbeTest(absltest.TestCase):
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
