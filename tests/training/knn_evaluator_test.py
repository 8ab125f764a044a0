"""kNN equals brute force in NumPy, and counts are exact on any number of ranks."""

from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.nn import functional

from jigclu.data.procedural import ProceduralImages
from jigclu.data.sources import ImageArray
from jigclu.system import collectives
from jigclu.system.errors import UserError
from jigclu.training import knn_evaluator
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.samples import MemorySource, noise, small_encoder
from tests.small_tasks import KNN

CPU = torch.device("cpu")


def evaluator(**changes: Any) -> knn_evaluator.KnnEvaluator:
    """Returns an evaluator of 7 queries by a bank of 20 images."""
    queries = ProceduralImages(images=7, size=32, seed=0, split="val")
    return with_settings(KNN, **({"queries": queries, "batch_size": 4} | changes))


def score_and_features() -> tuple[float, float, Tensor]:
    """Returns accuracy, chance and features; the ranks share the images."""
    knn, encoder = evaluator(), small_encoder()
    settings = knn._settings(torch.device("cpu"), torch.float32)
    scores = knn(encoder, torch.float32)
    features, _ = knn._all_queries(encoder, settings)
    return scores["knn_accuracy"], scores["knn_accuracy_chance"], features


def predict(
    queries: Tensor, bank: Tensor, labels: Tensor, neighbors: int, temperature: float
) -> Tensor:
    """Classifies by a bank in three pieces, shared by the ranks."""
    own = slice(collectives.rank(), None, collectives.world_size())
    nearest = knn_evaluator.empty_nearest(len(queries), neighbors, CPU)
    index = torch.arange(len(bank))[own]
    for piece in zip(bank[own].chunk(3), index.chunk(3), strict=True):
        nearest = knn_evaluator.update_nearest(nearest, queries, *piece)
    return knn_evaluator.vote(
        knn_evaluator.merge_ranks(nearest), labels, int(labels.max()) + 1, temperature
    )


def predict_random(neighbors: int, temperature: float) -> Tensor:
    return predict(*random_data(), neighbors, temperature)


def random_data() -> tuple[Tensor, Tensor, Tensor]:
    """Classifies more queries than are compared at once."""
    generator = torch.Generator().manual_seed(1)
    queries, bank = (
        functional.normalize(torch.randn(count, 8, generator=generator), dim=1)
        for count in (1500, 50)
    )
    return queries, bank, torch.randint(0, 4, (50,), generator=generator)


class PredictTest(parameterized.TestCase):
    def test_votes_by_hand(self) -> None:
        bank = functional.normalize(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), dim=1)
        labels = torch.tensor([1, 0, 0])
        query = torch.tensor([[1.0, 0.0]])
        # Low temperature: only the nearest decides. High temperature: two of three votes decide.
        self.assertEqual(predict(query, bank, labels, 3, 0.01).tolist(), [1])
        self.assertEqual(predict(query, bank, labels, 3, 100.0).tolist(), [0])
        self.assertEqual(predict(query, bank, labels, 1, 100.0).tolist(), [1])
        # All are distant, and exp((cosine - 1) / temperature) underflows to 0.
        self.assertEqual(predict(-query, bank, labels.flip(0), 3, 0.001).tolist(), [1])

    @parameterized.parameters((1, 0.07), (5, 0.07), (50, 1.0))
    def test_equals_brute_force(self, neighbors: int, temperature: float) -> None:
        queries, bank, labels = random_data()
        actual = predict(queries, bank, labels, neighbors, temperature)
        cosines = queries.double().numpy() @ bank.double().numpy().T
        for row, predicted in zip(cosines, actual.tolist(), strict=True):
            votes = np.zeros(4)
            for index in np.argsort(-row)[:neighbors]:
                votes[labels[index]] += np.exp(row[index] / temperature)
            self.assertGreaterEqual(votes[predicted], votes.max() * (1 - 1e-4))

    @parameterized.parameters((5, 0.07), (40, 1.0))
    def test_is_the_same_on_two_ranks(self, neighbors: int, temperature: float) -> None:
        # 40 of 50 neighbors: more than one rank's share of the bank.
        alone = predict_random(neighbors, temperature)
        for rank in run_on_ranks(predict_random, 2, neighbors, temperature):
            self.assertTrue(torch.equal(rank, alone))


class KnnEvaluatorTest(parameterized.TestCase):
    def test_bank_with_the_queries_scores_1(self) -> None:
        images = ProceduralImages(images=20, size=32, seed=0, split="train")
        pixels = torch.stack([images.read(index) for index in range(20)])
        bank, queries = (
            ImageArray(name, pixels, images.classes, images.labels) for name in ("bank", "queries")
        )
        knn = evaluator(bank=bank, queries=queries, neighbors=1)
        scores = knn(small_encoder(), torch.float32)
        self.assertEqual(scores["knn_accuracy"], 1.0)
        self.assertAlmostEqual(scores["knn_accuracy_chance"], 0.1)

    def test_features_are_pooled_and_normalized(self) -> None:
        knn, encoder = evaluator(), small_encoder().eval()
        features, _ = knn._all_queries(encoder, knn._settings(torch.device("cpu"), torch.float32))
        image = knn.eval_transform.normalize(knn.queries.read(6))
        with torch.no_grad():
            expected = functional.normalize(encoder(image[None]).mean((2, 3)), dim=1)[0]
        torch.testing.assert_close(features[6], expected, rtol=1e-4, atol=1e-5)

    def test_every_image_counts_once_on_two_ranks(self) -> None:
        accuracy, chance, features = score_and_features()
        for rank_accuracy, rank_chance, rank_features in run_on_ranks(score_and_features, 2):
            self.assertEqual((rank_accuracy, rank_chance), (accuracy, chance))
            torch.testing.assert_close(rank_features, features, rtol=1e-4, atol=1e-5)
        self.assertAlmostEqual(chance, 1 / 7)

    def test_unreadable_images_neither_vote_nor_count(self) -> None:
        images = noise(4, 3, 32, 32).unbind()
        # Each query is an image of the bank; the unreadable ones would be wrong and change chance.
        bank = MemorySource([*images, None], labels=[0, 1, 0, 1, 0])
        queries = MemorySource([None, *images, None], labels=[1, 0, 1, 0, 1, 1])
        bank.classes = queries.classes = ["a", "b"]
        queries.name = lambda index: f"query {index}"  # type: ignore[method-assign]
        knn = evaluator(bank=bank, queries=queries, neighbors=1, skip_unreadable=True)
        with self.assertLogs(level="WARNING") as logs:
            scores = knn(small_encoder(), torch.float32)
        self.assertLen(logs.output, 3)
        self.assertEqual(scores, {"knn_accuracy": 1.0, "knn_accuracy_chance": 0.5})
        with self.assertRaisesRegex(UserError, "query 0 is unreadable"):
            with_settings(knn, skip_unreadable=False)(small_encoder(), torch.float32)

    def test_shows_the_nearest_of_readable_images(self) -> None:
        images = noise(5, 3, 32, 32).unbind()
        # Queries are images of the bank in another order; two images are unreadable.
        bank = MemorySource([None, *images], labels=[0, 1, 0, 1, 0, 1])
        queries = MemorySource([images[4], None, images[0], images[2]], labels=[1, 0, 1, 1])
        bank.classes = queries.classes = ["a", "b"]
        queries.name = lambda index: f"query {index}"  # type: ignore[method-assign]
        knn = evaluator(bank=bank, queries=queries, neighbors=2, skip_unreadable=True)
        for is_last in (False, True):
            report = mock.Mock(is_last=is_last)
            with self.assertLogs(level="WARNING"):
                knn(small_encoder(), torch.float32, report)
            name, confusion, classes = report.confusion.call_args.args
            self.assertEqual((name, classes), ("knn_confusion", ["a", "b"]))
            self.assertEqual(confusion.tolist(), [[0, 0], [0, 3]])
            nearest = report.neighbors.call_args.args[3]
            self.assertEqual({query: row[0] for query, row in nearest.items()}, {0: 5, 2: 1, 3: 3})
            self.assertEqual({len(row) for row in nearest.values()}, {2})
            self.assertEqual(report.embedding.called, is_last)
        _, _, indices, features = report.embedding.call_args.args
        self.assertEqual(indices, [0, 2, 3])
        settings = knn._settings(CPU, torch.float32)
        with self.assertLogs(level="WARNING"):
            expected, _ = knn._all_queries(small_encoder(), settings)
        torch.testing.assert_close(features, expected[indices])

    def test_encoder_stays_unchanged(self) -> None:
        encoder = small_encoder().train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        evaluator()(encoder, torch.bfloat16)
        self.assertTrue(encoder.training)
        for name, value in encoder.state_dict().items():
            self.assertTrue(torch.equal(value, before[name]), name)

    @parameterized.parameters(
        ({"neighbors": 0}, "neighbors is 0.*20"),
        ({"neighbors": 21}, "neighbors is 21.*20"),
        ({"every": -1}, "every is -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        (
            {"queries": ImageArray("x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [], None)},
            "queries has no labels",
        ),
        (
            {
                "queries": ImageArray(
                    "x", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["cat", "dog"], [0, 1]
                )
            },
            "bank has 10 classes and queries 2.*bricked_bar",
        ),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            evaluator(**changes)


if __name__ == "__main__":
    absltest.main()
