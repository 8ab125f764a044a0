"""SimCLR against NumPy, on two ranks, and compiled."""

import dataclasses
import math
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jigclu.methods.simclr import SimClr
from jigclu.models.batch_norm import BatchNorm
from jigclu.models.projector import Projector
from jigclu.ops.augment import AugmentationParameters
from jigclu.ops.crops import two_views
from jigclu.system import collectives
from jigclu.system.errors import UserError
from tests.ranks import run_on_ranks
from tests.samples import BATCH, SIMCLR, SIZE, TinyEncoder, method_inputs, noise, small_encoder
from tests.small_tasks import TaskTestCase
from tests.step_case import train


def nt_xent(embeddings: NDArray[np.float64], temperature: float) -> float:
    """NT-Xent by its definition: rows 2k and 2k + 1 are the views of image k."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = unit @ unit.T / temperature
    losses = []
    for view in range(len(unit)):
        other = view + 1 if view % 2 == 0 else view - 1
        denominator = sum(np.exp(similarity[view, k]) for k in range(len(unit)) if k != view)
        losses.append(-np.log(np.exp(similarity[view, other]) / denominator))
    return float(np.mean(losses))


def projector(norm_layer: type[nn.Module] = BatchNorm) -> Projector:
    torch.manual_seed(0)
    return Projector(small_encoder(norm_layer), 16)


def tiny_projector(norm_layer: type[nn.Module] = BatchNorm) -> Projector:
    torch.manual_seed(0)
    return Projector(TinyEncoder(norm_layer), 16)


def random_embeddings(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)


def rank_loss_and_gradient(rows: int) -> tuple[Tensor, Tensor]:
    """Returns this rank's loss, and the gradient of its embeddings."""
    own = rows // collectives.world_size()
    embeddings = random_embeddings(rows)[collectives.rank() * own :][:own].requires_grad_()
    loss = SIMCLR.losses((embeddings,), ()).loss
    loss.backward()
    assert embeddings.grad is not None
    return loss.detach(), embeddings.grad


class SimClrTest(TaskTestCase):
    @parameterized.parameters(0.1, 0.5, 2.0)
    def test_loss_equals_numpy(self, temperature: float) -> None:
        embeddings = random_embeddings(12)
        method = dataclasses.replace(SIMCLR, temperature=temperature)
        loss = method.losses((embeddings,), ()).loss
        self.assertAlmostEqual(loss.item(), nt_xent(embeddings.double().numpy(), temperature), 5)

    def test_loss_by_hand(self) -> None:
        # Equal views of two orthogonal images: exp(2) for the other view, twice exp(0).
        embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        loss = SIMCLR.losses((embeddings,), ()).loss
        expected = -math.log(math.exp(2.0) / (math.exp(2.0) + 2.0))
        self.assertAlmostEqual(loss.item(), expected, places=6)

    def test_chance_is_the_loss_of_equal_embeddings(self) -> None:
        embeddings = functional.normalize(torch.ones(2 * BATCH, 8), dim=1)
        loss = SIMCLR.losses((embeddings,), ()).loss.item()
        self.assertAlmostEqual(loss, SIMCLR.chance(BATCH)["loss"], delta=1e-5)
        self.assertAlmostEqual(SIMCLR.chance(4)["loss"], math.log(7))

    def test_floor_is_the_loss_of_a_simplex(self) -> None:
        corners = functional.normalize(torch.eye(BATCH) - 1 / BATCH, dim=1)
        loss = SIMCLR.losses((corners.repeat_interleave(2, 0),), ()).loss.item()
        self.assertAlmostEqual(loss, SIMCLR.floor(BATCH)["loss"], delta=1e-5)

    def test_measures_take_neighbors_for_views_of_an_image(self) -> None:
        embeddings = torch.eye(BATCH).repeat_interleave(2, 0)
        measures = SIMCLR.measures((embeddings, embeddings[:3]), ())
        self.assertEqual(measures["retrieval"].item(), 1.0)
        self.assertEqual(SIMCLR.chance(BATCH)["retrieval"], 1 / (2 * BATCH - 1))
        # Rows 0 and 1 are equal: singular values sqrt(2) and 1.
        shares = torch.tensor([2**0.5, 1.0]) / (2**0.5 + 1)
        expected = (-(shares * shares.log()).sum()).exp().item()
        self.assertAlmostEqual(measures["feature_rank"].item(), expected, places=5)

    def test_features_belong_to_the_images_of_their_views(self) -> None:
        outputs = (torch.zeros(4, 3), torch.arange(8.0).view(4, 2))
        features, images = SIMCLR.encoder_features(outputs, ())
        self.assertIs(features, outputs[1])
        self.assertEqual(images.tolist(), [0, 0, 1, 1])
        with mock.patch("jigclu.system.collectives.rank", return_value=1):
            _, images = SIMCLR.encoder_features(outputs, ())
        self.assertEqual(images.tolist(), [2, 2, 3, 3])

    def test_loss_and_gradient_on_two_ranks_equal_those_on_one(self) -> None:
        loss, gradient = rank_loss_and_gradient(8)
        ranks = run_on_ranks(rank_loss_and_gradient, 2, 8)
        mean = torch.stack([rank_loss for rank_loss, _ in ranks]).mean()
        torch.testing.assert_close(mean, loss)
        # Each rank's gradient is that of the sum of both ranks' losses.
        both = torch.cat([rank_gradient for _, rank_gradient in ranks]) / 2
        torch.testing.assert_close(both, gradient)

    def test_views_keep_the_order_of_images(self) -> None:
        crops = noise(BATCH, 2, 3, SIZE, SIZE)
        inputs = SIMCLR.step_inputs(crops, 0, 5)
        for row in range(2 * BATCH):
            self.assertTrue(torch.equal(inputs.crops[row], crops[row // 2, row % 2]))
        self.assertEmpty(inputs.targets)
        sigma = AugmentationParameters(*inputs.augmentation).sigma.unflatten(0, (BATCH, 2))
        self.assertFalse(torch.equal(sigma[:, 0], sigma[:, 1]))

    def test_views_are_random_crops_of_the_whole_image(self) -> None:
        random = np.random.default_rng(0)
        boxes = [
            box
            for _ in range(200)
            for box in two_views(random, 40, 60, scale=(0.2, 1.0), ratio=(0.75, 4 / 3))
        ]
        self.assertTrue(all(box.top >= 0 and box.top + box.height <= 40 for box in boxes))
        self.assertTrue(all(box.left >= 0 and box.left + box.width <= 60 for box in boxes))
        self.assertGreater(max(box.left + box.width for box in boxes), 55)
        areas = [box.height * box.width / 2400 for box in boxes]
        self.assertGreater(min(areas), 0.19)
        self.assertNotEqual(boxes[0], boxes[1])

    def test_equals_a_plain_step(self) -> None:
        model = tiny_projector(nn.BatchNorm2d)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
        inputs = method_inputs(SIMCLR, 0)
        views = SIMCLR.augmentation(inputs.crops, inputs.augmentation)
        embeddings = model.projection(model.encoder(views).mean((2, 3)))
        unit = functional.normalize(embeddings, dim=1)
        logits = unit @ unit.T / SIMCLR.temperature
        logits = logits.masked_fill(torch.eye(len(unit), dtype=torch.bool), -torch.inf)
        loss = functional.cross_entropy(logits, torch.arange(len(unit)) ^ 1)
        loss.backward()
        optimizer.step()
        result = train(1, build=tiny_projector, method=SIMCLR)
        self.assertAlmostEqual(result["metrics"][0]["loss"], loss.item(), delta=1e-5)
        expected = {name: value.detach() for name, value in model.named_parameters()}
        self.assert_tensors_close(result["parameters"], expected, 1e-5)

    def test_two_ranks_equal_one(self) -> None:
        alone = train_tiny()
        for rank in run_on_ranks(train_tiny, 2):
            for ours, theirs in zip(rank["metrics"], alone["metrics"], strict=True):
                self.assertAlmostEqual(ours["loss"], theirs["loss"], delta=1e-5)
            for name in ("gradients", "buffers", "parameters"):
                self.assert_tensors_close(rank[name], alone[name], 1e-5)

    def test_compiled_equals_eager_without_breaks_or_recompilation(self) -> None:
        torch._dynamo.utils.counters.clear()
        eager = train(3, build=tiny_projector, method=SIMCLR)
        compiled = train(3, use_compile=True, build=tiny_projector, method=SIMCLR)
        self.assertEqual(compiled["graph_breaks"], 0)
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 2)
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-4)
        self.assert_tensors_close(compiled["parameters"], eager["parameters"], 1e-4)

    @parameterized.parameters(1, 2)
    def test_micro_batches_without_batch_norm_equal_the_whole(self, micro_batch_size: int) -> None:
        whole = train(2, build=projector, norm_layer=nn.Identity, method=SIMCLR)
        pieces = train(
            2,
            micro_batch_size=micro_batch_size,
            build=projector,
            norm_layer=nn.Identity,
            method=SIMCLR,
        )
        self.assert_tensors_close(pieces["gradients"], whole["gradients"], 1e-5)

    @parameterized.parameters(
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"view_size": 0}, "view_size is 0"),
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio is"),
    )
    def test_rejects_settings_out_of_range(self, change: dict[str, object], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            dataclasses.replace(SIMCLR, **change)  # type: ignore[arg-type]

    def test_draws_at_most_eight_views(self) -> None:
        method: SimClr = SIMCLR
        picture = method.draw(method_inputs(method, 0))
        side = method.view_size + 2  # With two pixels around each view.
        self.assertEqual(picture.shape, (3, 2 * side + 2, 4 * side + 2))


def train_tiny() -> dict[str, Any]:
    """Trains on this rank; at the top level for the processes of other ranks."""
    return train(3, build=tiny_projector, method=SIMCLR)


if __name__ == "__main__":
    absltest.main()
