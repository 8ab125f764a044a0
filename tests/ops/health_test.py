"""Tests of jigclu.ops.health."""

import itertools
import math
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.nn import functional

from jigclu.ops import health


def random_embeddings(images: int, crops: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return functional.normalize(torch.randn(images, crops, channels, generator=generator), dim=2)


def explicit_health(embeddings: np.ndarray) -> dict[str, float]:
    """Computes all measures but the ranks by loops over pairs of crops."""
    images, crops, channels = embeddings.shape
    slots = list(itertools.product(range(images), range(crops)))
    siblings, others, found = [], [], 0
    for one in slots:
        cosines = {two: float(embeddings[one] @ embeddings[two]) for two in slots if two != one}
        siblings += [cosine for two, cosine in cosines.items() if two[0] == one[0]]
        others += [cosine for two, cosine in cosines.items() if two[0] != one[0]]
        found += max(cosines, key=lambda two: cosines[two])[0] == one[0]
    distances = [2 - 2 * cosine for cosine in others]
    flat = embeddings.reshape(-1, channels)
    return {
        "retrieval": found / len(slots),
        "sibling_cosine": float(np.mean(siblings)),
        "other_cosine": float(np.mean(others)),
        "alignment": float(np.mean([2 - 2 * cosine for cosine in siblings])),
        "uniformity": math.log(np.mean(np.exp(-2 * np.array(distances)))),
        "embedding_deviation": float(flat.std(axis=0).mean() * channels**0.5),
    }


class HealthTest(parameterized.TestCase):
    def test_nearest_other_row_is_never_the_row_itself(self) -> None:
        rows = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]), dim=1)
        before = rows.clone()
        self.assertEqual(health.nearest_others(rows).tolist(), [1, 0, 1])
        self.assertTrue(torch.equal(rows, before))

    @parameterized.parameters((5, 4, 8), (6, 2, 3), (2, 3, 1))
    def test_equals_loops_over_pairs(self, images: int, crops: int, channels: int) -> None:
        embeddings = random_embeddings(images, crops, channels)
        measured = health.embedding_health(embeddings)._asdict()
        for name, value in explicit_health(embeddings.double().numpy()).items():
            self.assertAlmostEqual(measured[name].item(), value, delta=1e-5, msg=name)

    def test_perfect_embeddings_of_orthogonal_images(self) -> None:
        embeddings = torch.eye(4)[:, None].expand(4, 3, 4)
        measured = health.embedding_health(embeddings)
        self.assertEqual(measured.retrieval.item(), 1.0)
        self.assertEqual(measured.alignment.item(), 0.0)
        self.assertAlmostEqual(measured.uniformity.item(), -4.0, places=6)
        self.assertAlmostEqual(measured.embedding_rank.item(), 4.0, places=5)

    def test_collapsed_embeddings(self) -> None:
        embeddings = functional.normalize(torch.ones(4, 4, 8), dim=2)
        measured = health.embedding_health(embeddings)
        self.assertAlmostEqual(measured.embedding_deviation.item(), 0.0, places=6)
        self.assertAlmostEqual(measured.embedding_rank.item(), 1.0, places=3)
        self.assertAlmostEqual(measured.uniformity.item(), 0.0, places=5)

    def test_chance_is_the_retrieval_of_random_embeddings(self) -> None:
        found = health.embedding_health(random_embeddings(400, 4, 64)).retrieval.item()
        chance = health.chance_retrieval(400, 4)
        self.assertEqual(chance, 3 / 1599)
        # Three standard deviations of 1,600 trials.
        self.assertAlmostEqual(found, chance, delta=3 * math.sqrt(chance / 1600))

    def test_many_crops_are_compared_with_all_others(self) -> None:
        embeddings = random_embeddings(6, 4, 8)
        # The nearest crops of the first image are in the last one.
        embeddings[5] = embeddings[0]
        with mock.patch.object(health, "_ANCHORS", 7):
            measured = health.embedding_health(embeddings)
        own = embeddings[0]
        siblings = (own @ own.t())[~torch.eye(4, dtype=torch.bool)].mean()
        self.assertAlmostEqual(measured.sibling_cosine.item(), siblings.item(), places=6)
        self.assertEqual(measured.retrieval.item(), 0.0)

    @parameterized.parameters((5, 9), (9, 5), (600, 3))
    def test_effective_rank_equals_numpy(self, rows: int, channels: int) -> None:
        features = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1))
        values = np.linalg.svd(features[:512].double().numpy(), compute_uv=False)
        shares = values / values.sum()
        expected = math.exp(-float((shares * np.log(shares)).sum()))
        self.assertAlmostEqual(health.effective_rank(features).item(), expected, delta=1e-4)

    def test_effective_rank_of_odd_features(self) -> None:
        self.assertEqual(health.effective_rank(torch.zeros(4, 3)).item(), 0.0)
        self.assertAlmostEqual(health.effective_rank(torch.ones(4, 3)).item(), 1.0, places=5)
        self.assertTrue(math.isnan(health.effective_rank(torch.full((2, 2), torch.inf)).item()))


if __name__ == "__main__":
    absltest.main()
