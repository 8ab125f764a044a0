"""MoCo v2 against NumPy: loss, queue and momentum encoder; and what `two_views_case` checks."""

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from absl.testing import absltest, parameterized
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.moco import Moco, MocoNetwork, MocoOutputs
from jigclu.system.errors import UserError
from jigclu.training.settings import with_settings
from tests.methods import two_views_case
from tests.methods.two_views_case import IMAGES
from tests.samples import BATCH, MOCO, TinyEncoder, noise, tiny_network
from tests.small_tasks import PRETRAINING
from tests.step_case import train_tiny


def info_nce(
    queries: NDArray[np.float64],
    keys: NDArray[np.float64],
    queue: NDArray[np.float64],
    temperature: float,
) -> float:
    """InfoNCE by its definition, equation 1 of MoCo: one positive and the queue."""
    losses = []
    for query, key in zip(queries, keys, strict=True):
        positive = np.exp(query @ key / temperature)
        negatives = sum(np.exp(query @ other / temperature) for other in queue)
        losses.append(-np.log(positive / (positive + negatives)))
    return float(np.mean(losses))


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 16, generator=generator), dim=1)


def create_outputs(queries: Tensor, keys: Tensor, queue: Tensor) -> MocoOutputs:
    return MocoOutputs(queries, keys, queries @ queue.t(), queries)


def network() -> MocoNetwork:
    result = tiny_network(MOCO)
    assert isinstance(result, MocoNetwork)
    return result


class MocoTest(two_views_case.TwoViewsCase):
    method: ClassVar[Moco] = MOCO
    learner: ClassVar = (dataclasses.replace(MOCO, queue_size=4 * IMAGES, momentum=0.9), 0.003)
    first_step: ClassVar = 8  # Earlier losses depend on the random vectors of the queue.

    def outputs(self, embeddings: Tensor) -> MocoOutputs:
        keys = embeddings[1::2]
        # Of other images: what is left of the space, or what all images collapse to.
        queue = keys.roll(1, 0) if len(keys.unique(dim=0)) > 1 else keys
        negatives = (embeddings[::2] * queue).sum(1, keepdim=True).expand(-1, MOCO.queue_size)
        return MocoOutputs(embeddings[::2], keys, negatives, embeddings)

    @parameterized.parameters(0.07, 0.2, 1.0)
    def test_loss_equals_numpy(self, temperature: float) -> None:
        queries, keys, queue = unit(6, 0), unit(6, 1), unit(20, 2)
        method = dataclasses.replace(MOCO, temperature=temperature)
        loss = method.losses(create_outputs(queries, keys, queue), ()).loss
        first, second, others = (values.double().numpy() for values in (queries, keys, queue))
        self.assertAlmostEqual(loss.item(), info_nce(first, second, others, temperature), 5)

    def test_accuracy_by_hand(self) -> None:
        queries = torch.eye(4)
        keys = torch.stack([queries[0], queries[1], queries[0], queries[3]])
        outputs = create_outputs(queries, keys, queries[1:3] * 0.5)
        # The third query is nearer to the queue; of two equal cosines the queue's counts.
        self.assertEqual(MOCO.losses(outputs, ()).accuracy.item(), 0.75)

    def test_gradient_reaches_queries_only(self) -> None:
        queries, keys = unit(4, 0).requires_grad_(), unit(4, 1).requires_grad_()
        MOCO.losses(create_outputs(queries, keys, unit(12, 2)), ()).loss.backward()
        assert queries.grad is not None
        self.assertGreater(queries.grad.norm().item(), 0)
        self.assertIsNone(keys.grad)

    def test_network_encodes_first_views_as_queries_and_second_views_as_keys(self) -> None:
        model = network()
        for module in (model.momentum_encoder, model.momentum_projection):
            for parameter in module.parameters():
                parameter.add_(0.1)
        images = noise(2 * BATCH, 3, 32, 32) / 255
        outputs = model(images)
        for name, encoder, projection, view in (
            ("queries", model.encoder, model.projection, 0),
            ("keys", model.momentum_encoder, model.momentum_projection, 1),
        ):
            embeddings = projection(encoder(images[view::2]).mean((2, 3)))
            torch.testing.assert_close(
                getattr(outputs, name), functional.normalize(embeddings, dim=1)
            )
        torch.testing.assert_close(outputs.negatives, outputs.queries @ model.queue.t())
        outputs.queries.sum().backward()
        self.assertFalse(outputs.keys.requires_grad)
        self.assertTrue(all(p.grad is None for p in model.momentum_encoder.parameters()))

    def test_keys_replace_the_oldest_of_the_queue(self) -> None:
        model = network()
        first = model.queue.clone()
        batches = [unit(BATCH, 10 + step) for step in range(5)]
        for step, keys in enumerate(batches):
            with torch.no_grad():
                MOCO.update_state(model, create_outputs(keys, keys, model.queue), step, 10)
            if step == 1:
                expected = torch.cat([*batches[:2], first[2 * BATCH :]])
                self.assertTrue(torch.equal(model.queue, expected))
        # The queue holds three batches: the fifth is in the place of the second.
        expected = torch.cat([batches[3], batches[4], batches[2]])
        self.assertTrue(torch.equal(model.queue, expected))

    def test_momentum_encoder_by_hand(self) -> None:
        before, after = train_tiny(MOCO, 2), train_tiny(MOCO, 3)
        for name in ("momentum_encoder.conv1.weight", "momentum_projection.2.bias"):
            self.assertNotIn(name, after["parameters"])
            trained = after["parameters"][name.removeprefix("momentum_")]
            expected = 0.75 * before["buffers"][name] + 0.25 * trained
            torch.testing.assert_close(after["buffers"][name], expected)

    def test_first_step_copies_the_encoder(self) -> None:
        model = network()
        with torch.no_grad():
            model.encoder.get_parameter("conv1.weight").add_(1.0)
            MOCO.update_state(model, create_outputs(*[unit(BATCH, 0)] * 3), 0, 10)
        self.assertTrue(
            torch.equal(
                model.momentum_encoder.get_parameter("conv1.weight"),
                model.encoder.get_parameter("conv1.weight"),
            )
        )

    def test_micro_batches_without_batch_norm_equal_the_whole(self) -> None:
        whole = train_tiny(MOCO, norm_layer=nn.Identity)
        pieces = train_tiny(MOCO, norm_layer=nn.Identity, micro_batch_size=2)
        for name in ("gradients", "buffers", "parameters"):
            self.assert_tensors_close(pieces[name], whole[name], 1e-5)

    def test_chance_and_floor_by_numpy(self) -> None:
        equal = np.ones((1, 1))
        chance = info_nce(equal, equal, np.ones((MOCO.queue_size, 1)), 0.2)
        self.assertAlmostEqual(MOCO.chance(BATCH)["loss"], chance)
        corners = np.eye(MOCO.queue_size + 1) - 1 / (MOCO.queue_size + 1)
        corners /= np.linalg.norm(corners, axis=1, keepdims=True)
        floor = info_nce(corners[:1], corners[:1], corners[1:], 0.2)
        self.assertAlmostEqual(MOCO.floor(BATCH)["loss"], floor)

    def test_retrieval_compares_queries_with_keys(self) -> None:
        # All queries are nearer to each other than to any key.
        keys = torch.eye(IMAGES, 16)
        queries = functional.normalize(keys + 10 * torch.eye(16)[:1], dim=1)
        measures = MOCO.measures(create_outputs(queries, keys, keys), ())
        self.assertGreater(measures["other_cosine"].item(), 0)
        self.assertEqual(measures["retrieval"].item(), 1 / IMAGES)
        self.assertLess(measures["embedding_deviation"].item(), 0.5)

    def test_features_belong_to_the_images_of_first_views(self) -> None:
        features, images = MOCO.encoder_features(create_outputs(*[unit(4, 0)] * 3), ())
        self.assertTrue(torch.equal(features, unit(4, 0)))
        self.assertEqual(images.tolist(), [0, 1, 2, 3])

    def test_queue_must_hold_whole_batches(self) -> None:
        encoder = TinyEncoder()
        MOCO.check_run(encoder, 1, BATCH, 1)
        with self.assertRaisesRegex(UserError, "^queue_size is 12; .* which is 8: use 16$"):
            MOCO.check_run(encoder, 1, 8, 1)
        with self.assertRaisesRegex(UserError, "^queue_size is 12"):
            with_settings(PRETRAINING, method=MOCO, batch_size=5).check(self.folder)

    @parameterized.parameters(
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"view_size": 0}, "view_size is 0"),
    )
    def test_rejects_settings_out_of_range(self, change: dict[str, object], message: str) -> None:
        self.assert_rejected(change, message)


if __name__ == "__main__":
    absltest.main()
