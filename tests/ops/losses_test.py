"""Tests of jigclu.ops.losses."""

import math
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.nn import functional

from jigclu.ops import jigsaw, losses

TEMPERATURE = 0.3
BASE_TEMPERATURE = 0.07


def masked_loss(
    embeddings: np.ndarray, image: np.ndarray, queue: np.ndarray | None = None
) -> float:
    """Computes the loss as the published code does, over all pairs of patches with masks.

    Args:
      embeddings: [slots, channels], in any order.
      image: int [slots], the image of each slot's patch.
      queue: [queue_size, channels], further negatives.
    """
    logits = embeddings @ embeddings.T / TEMPERATURE
    largest = logits.max(axis=1, keepdims=True)
    logits -= largest
    other = 1.0 - np.eye(len(image))
    sibling = (image[:, None] == image[None, :]) * other
    sums = (np.exp(logits) * other).sum(axis=1, keepdims=True)
    if queue is not None:
        to_queue = embeddings @ queue.T / TEMPERATURE - largest
        sums += np.exp(to_queue).sum(axis=1, keepdims=True)
    log_softmax = logits - np.log(sums)
    per_anchor = (sibling * log_softmax).sum(axis=1) / sibling.sum(axis=1)
    return float(-TEMPERATURE / BASE_TEMPERATURE * per_anchor.mean())


def finite_differences(
    embeddings: np.ndarray, image: np.ndarray, queue: np.ndarray | None = None
) -> np.ndarray:
    gradient = np.zeros_like(embeddings)
    for index in np.ndindex(embeddings.shape):
        step = np.zeros_like(embeddings)
        step[index] = 1e-5
        ahead, behind = (masked_loss(embeddings + sign * step, image, queue) for sign in (1, -1))
        gradient[index] = (ahead - behind) / 2e-5
    return gradient


def random_embeddings(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return functional.normalize(values, dim=-1)


def clustering_loss(embeddings: Tensor, first: int, count: int) -> Tensor:
    return losses.clustering_loss(embeddings, first, count, TEMPERATURE, BASE_TEMPERATURE)


def loss_with_queue(embeddings: Tensor, queue: Tensor, first: int, count: int) -> Tensor:
    sums = losses.log_sum_of_queue(embeddings.flatten(0, 1), queue, TEMPERATURE)
    sums = sums.view(embeddings.shape[:2])
    return losses.clustering_loss(
        embeddings, first, count, TEMPERATURE, BASE_TEMPERATURE, queue_sums=sums
    )


class EmbeddingsByImageTest(parameterized.TestCase):
    @parameterized.parameters((2, 1), (2, 5), (3, 4))
    def test_embeddings_return_to_their_image_and_patch(self, grid: int, batch: int) -> None:
        permutation = jigsaw.global_permutation(0, 0, batch * grid**2)
        # The embedding of each slot contains the image and patch number that it shows.
        embeddings = torch.stack([permutation % batch, permutation // batch], dim=1)
        actual = losses.embeddings_by_image(embeddings, permutation, grid)
        image, patch = torch.meshgrid(torch.arange(batch), torch.arange(grid**2), indexing="ij")
        self.assertTrue(torch.equal(actual, torch.stack([image, patch], dim=2)))


class ClusteringLossTest(parameterized.TestCase):
    def test_loss_by_hand(self) -> None:
        # Two images of two patches: equal within an image, orthogonal between images. Each anchor
        # has cosine 1 to one of the other three patches and cosine 0 to two.
        embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        actual = losses.clustering_loss(embeddings, 0, 2, temperature=0.5, base_temperature=0.25)
        self.assertAlmostEqual(actual.item(), 2 * (math.log(math.exp(2) + 2) - 2), places=6)

    def test_identical_embeddings_give_the_log_of_the_number_of_others(self) -> None:
        embeddings = random_embeddings(7).expand(5, 4, 7)
        expected = TEMPERATURE / BASE_TEMPERATURE * math.log(5 * 4 - 1)
        self.assertAlmostEqual(clustering_loss(embeddings, 0, 5).item(), expected, places=9)

    @parameterized.parameters((2, 3), (3, 2), (2, 1))
    def test_value_and_gradient_equal_the_masked_loss(self, grid: int, batch: int) -> None:
        permutation = jigsaw.global_permutation(1, 2, batch * grid**2)
        embeddings = random_embeddings(batch * grid**2, 5).requires_grad_()
        by_image = losses.embeddings_by_image(embeddings, permutation, grid)
        loss = clustering_loss(by_image, 0, batch)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        slots, image = embeddings.detach().numpy(), (permutation % batch).numpy()
        np.testing.assert_allclose(loss.item(), masked_loss(slots, image), rtol=1e-12)
        np.testing.assert_allclose(gradient, finite_differences(slots, image), atol=1e-8)

    @parameterized.parameters(1, 2, 3, 6)
    def test_losses_of_all_ranks_average_to_the_whole(self, ranks: int) -> None:
        embeddings = random_embeddings(6, 4, 5)
        count = 6 // ranks
        parts = [clustering_loss(embeddings, rank * count, count) for rank in range(ranks)]
        whole = clustering_loss(embeddings, 0, 6)
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)

    @parameterized.parameters(1, 5, 8, 23)
    def test_rows_in_pieces_give_the_same_loss_and_gradient(self, at_once: int) -> None:
        embeddings = random_embeddings(6, 4, 5).requires_grad_()
        whole = clustering_loss(embeddings, 0, 6)
        (gradient,) = torch.autograd.grad(whole, embeddings)
        with mock.patch.object(losses, "ANCHORS_AT_ONCE", at_once):
            loss = clustering_loss(embeddings, 0, 6)
            (piecewise,) = torch.autograd.grad(loss, embeddings)
            parts = [clustering_loss(embeddings, first, 2) for first in (0, 2, 4)]
        torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
        torch.testing.assert_close(piecewise, gradient, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)

    def test_saved_tensors_do_not_grow_with_the_square_of_the_patches(self) -> None:
        embeddings = random_embeddings(16, 4, 3).requires_grad_()
        sizes: list[int] = []

        def save(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with (
            mock.patch.object(losses, "ANCHORS_AT_ONCE", 8),
            torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        ):
            clustering_loss(embeddings, 0, 16)
        # All cosines are 64 * 64 numbers, those to siblings 16 * 4 * 4, the embeddings 64 * 3.
        self.assertNotEmpty(sizes)
        self.assertLessEqual(max(sizes), 256)

    def test_rows_in_pieces_compile_without_graph_breaks(self) -> None:
        embeddings = random_embeddings(6, 4, 5).requires_grad_()
        whole = clustering_loss(embeddings, 0, 6)
        (gradient,) = torch.autograd.grad(whole, embeddings)
        with mock.patch.object(losses, "ANCHORS_AT_ONCE", 8):
            compiled = torch.compile(clustering_loss, fullgraph=True, dynamic=False)
            loss = compiled(embeddings, 0, 6)
            (piecewise,) = torch.autograd.grad(loss, embeddings)
        torch.testing.assert_close(loss, whole, rtol=1e-10, atol=0)
        torch.testing.assert_close(piecewise, gradient, rtol=1e-8, atol=1e-12)

    def test_loss_falls_as_siblings_approach_each_other(self) -> None:
        scattered = random_embeddings(4, 4, 8)
        centers = scattered.mean(1, keepdim=True)
        values = [
            clustering_loss(functional.normalize(scattered.lerp(centers, share), dim=2), 0, 4)
            for share in (0.0, 0.5, 1.0)
        ]
        self.assertGreater(values[0], values[1])
        self.assertGreater(values[1], values[2])

    def test_loss_is_stable_at_low_temperature(self) -> None:
        embeddings = random_embeddings(4, 4, 8).float().requires_grad_()
        loss = losses.clustering_loss(embeddings, 0, 4, 0.005, 0.005)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        expected = losses.clustering_loss(embeddings.detach().double(), 0, 4, 0.005, 0.005)
        self.assertTrue(gradient.isfinite().all())
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


class QueueTest(parameterized.TestCase):
    def test_loss_by_hand(self) -> None:
        # As above; each anchor has cosine 1 to one entry and cosine 0 to another one.
        embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        sums = losses.log_sum_of_queue(embeddings.flatten(0, 1), torch.eye(2), 0.5).view(2, 2)
        actual = losses.clustering_loss(embeddings, 0, 2, 0.5, 0.25, sums)
        self.assertAlmostEqual(actual.item(), 2 * (math.log(2 * math.exp(2) + 3) - 2), places=6)

    @parameterized.parameters(2048, 5)
    def test_value_and_gradient_equal_the_masked_loss(self, at_once: int) -> None:
        embeddings = random_embeddings(3, 4, 5).requires_grad_()
        queue = random_embeddings(7, 5, seed=1)
        with mock.patch.object(losses, "ANCHORS_AT_ONCE", at_once):
            loss = loss_with_queue(embeddings, queue, 0, 3)
            (gradient,) = torch.autograd.grad(loss, embeddings)
        patches, image = embeddings.detach().flatten(0, 1).numpy(), np.arange(12) // 4
        expected = masked_loss(patches, image, queue.numpy())
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
        differences = finite_differences(patches, image, queue.numpy())
        np.testing.assert_allclose(gradient.flatten(0, 1), differences, atol=1e-8)

    def test_losses_of_all_ranks_average_to_the_whole(self) -> None:
        embeddings, queue = random_embeddings(6, 4, 5), random_embeddings(7, 5, seed=1)
        parts = [loss_with_queue(embeddings, queue, first, 2) for first in (0, 2, 4)]
        whole = loss_with_queue(embeddings, queue, 0, 6)
        torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-12, atol=0)

    def test_empty_entries_do_not_count(self) -> None:
        embeddings, filled = random_embeddings(3, 4, 5), random_embeddings(7, 5, seed=1)
        queue = torch.cat([filled[:3], torch.zeros(5, 5, dtype=filled.dtype), filled[3:]])
        expected = loss_with_queue(embeddings, filled, 0, 3)
        actual = loss_with_queue(embeddings, queue, 0, 3)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)

    @parameterized.parameters(torch.float32, torch.float64)
    def test_empty_queue_changes_neither_loss_nor_gradient(self, dtype: torch.dtype) -> None:
        embeddings = random_embeddings(3, 4, 5).to(dtype).requires_grad_()
        expected = clustering_loss(embeddings, 0, 3)
        loss = loss_with_queue(embeddings, torch.zeros(7, 5, dtype=dtype), 0, 3)
        self.assertEqual(loss.item(), expected.item())
        (expected_gradient,) = torch.autograd.grad(expected, embeddings)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


class LocationLossTest(absltest.TestCase):
    def test_loss_and_accuracy_by_hand(self) -> None:
        # The true classes have probability 3/6, 1/4 (all classes tie) and 1/6.
        logits = torch.tensor([[3.0, 1, 1, 1], [1, 1, 1, 1], [3, 1, 1, 1]]).log()
        loss, accuracy = losses.location_loss(logits, torch.tensor([0, 3, 1]))
        self.assertAlmostEqual(loss.item(), math.log(2 * 4 * 6) / 3, places=6)
        self.assertAlmostEqual(accuracy.item(), 1 / 3, places=6)

    def test_gradient_is_softmax_minus_one_hot(self) -> None:
        logits = torch.tensor([[3.0, 1, 1, 1], [1, 1, 1, 1]]).log().requires_grad_()
        loss, _ = losses.location_loss(logits, torch.tensor([0, 2]))
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = np.array([[-1 / 2, 1 / 6, 1 / 6, 1 / 6], [1 / 4, 1 / 4, -3 / 4, 1 / 4]]) / 2
        np.testing.assert_allclose(gradient, expected, atol=1e-7)


if __name__ == "__main__":
    absltest.main()
