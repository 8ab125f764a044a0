"""The linear probe equals a plain torch loop, also on two ranks."""

from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from torch import nn
from torch.nn import functional

from jigclu.data.procedural import ProceduralImages
from jigclu.data.sampler import epoch_order
from jigclu.system import seeds
from jigclu.system.errors import UserError
from jigclu.training import probe_evaluator
from jigclu.training.probe_evaluator import ProbeEvaluator
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.samples import small_encoder
from tests.small_tasks import EVAL_TRANSFORM, LOADING, TaskTestCase

# 23 images in batches of 8: the last one is smaller, and rank shares differ.
PROBE = ProbeEvaluator(
    every=50,
    source=ProceduralImages(images=23, size=32, seed=0, split="train"),
    val=ProceduralImages(images=11, size=32, seed=0, split="val"),
    eval_transform=EVAL_TRANSFORM,
    epochs=3,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.9,
    seed=1,
    loading=LOADING,
)


def features_and_labels(source: ProceduralImages) -> tuple[torch.Tensor, torch.Tensor]:
    encoder = small_encoder().eval()
    images = torch.stack([source.read(index) for index in range(len(source))])
    with torch.no_grad():
        features = encoder(EVAL_TRANSFORM.normalize(images)).mean((2, 3))
    return features, torch.tensor(source.labels)


def scores() -> dict[str, float]:
    return PROBE(small_encoder(), torch.float32)


def weights() -> torch.Tensor:
    """Returns the trained weights of the probe."""
    encoder = small_encoder()
    settings = PROBE._settings(torch.device("cpu"), torch.float32)
    data = PROBE._encode(encoder, PROBE.source, settings)
    moments = probe_evaluator._moments(data.features, len(PROBE.source))
    return PROBE._train(data.standardize(*moments)).weight[0]


def reported() -> tuple[torch.Tensor, float, torch.Tensor]:
    """Returns the confusion, the accuracy and the embedding that a rank reports."""
    report = mock.Mock(is_last=True)
    scores = PROBE(small_encoder(), torch.float32, report)
    confusion, features = (call.call_args.args for call in (report.confusion, report.embedding))
    return confusion[1], scores["probe_accuracy"], features[3]


class ProbeEvaluatorTest(TaskTestCase):
    def test_equals_a_plain_loop(self) -> None:
        raw, labels = features_and_labels(PROBE.source)  # type: ignore[arg-type]
        mean, deviation = raw.mean(0), raw.std(0, correction=0)
        features = (raw - mean) / deviation.clamp_min(1e-6)
        layer = nn.Linear(512, 10)
        with torch.no_grad(), seeds.initial_weights(PROBE.seed):
            layer.weight.copy_(torch.empty(10, 512).normal_(0, 0.01))
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), 0.05, 0.9)
        step = 0
        for epoch in range(3):
            for rows in epoch_order(PROBE.seed, epoch, 23).split(8):
                optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 9)
                optimizer.zero_grad()
                functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
                optimizer.step()
                step += 1
        torch.testing.assert_close(weights(), layer.weight.detach(), rtol=1e-3, atol=1e-5)
        val_raw, val_labels = features_and_labels(PROBE.val)  # type: ignore[arg-type]
        val_features = (val_raw - mean) / deviation.clamp_min(1e-6)
        accuracy = (layer(val_features).argmax(1) == val_labels).float().mean().item()
        found = scores()
        self.assertAlmostEqual(found["probe_accuracy"], accuracy, places=6)
        self.assertAlmostEqual(found["probe_accuracy_chance"], 2 / 11)

    def test_two_ranks_train_the_same_probe_as_one(self) -> None:
        alone, expected = weights(), scores()
        for rank in run_on_ranks(weights, 2):
            torch.testing.assert_close(rank, alone, rtol=1e-3, atol=1e-5)
        for rank_scores in run_on_ranks(scores, 2):
            self.assertEqual(rank_scores, expected)

    def test_shows_confusions_and_at_the_end_the_standardized_features(self) -> None:
        for index in (0, 1):
            confusion, accuracy, features = (
                reported() if index == 0 else run_on_ranks(reported, 2)[1]
            )
            labels = torch.tensor(PROBE.val.labels)
            self.assertTrue(torch.equal(confusion.sum(1), labels.bincount(minlength=10)))
            self.assertEqual(confusion.trace() / 11, accuracy)
            raw, _ = features_and_labels(PROBE.source)  # type: ignore[arg-type]
            shown, _ = features_and_labels(PROBE.val)  # type: ignore[arg-type]
            deviation = raw.std(0, correction=0).clamp_min(1e-6)
            expected = (shown - raw.mean(0)) / deviation
            torch.testing.assert_close(features, expected, rtol=1e-2, atol=1e-3)

    def test_encoder_stays_unchanged(self) -> None:
        encoder = small_encoder().train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        PROBE(encoder, torch.float32)
        self.assertTrue(encoder.training)
        self.assert_tensors_close(dict(encoder.state_dict()), before, 0.0)

    @parameterized.parameters(
        ({"every": -1}, "every is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            with_settings(PROBE, **changes)


if __name__ == "__main__":
    absltest.main()
