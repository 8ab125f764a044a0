"""BYOL against NumPy: loss and target network; and what `two_views_case` checks."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch
from absl.testing import absltest, parameterized
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jigclu.methods.byol import Byol, ByolNetwork, ByolOutputs
from tests.methods import two_views_case
from tests.samples import BATCH, BYOL, noise, tiny_network
from tests.step_case import train_tiny


def symmetrized_loss(predictions: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Equation 2 of BYOL and its swap, summed: rows 2k and 2k + 1 are the views of image k."""

    def distance(q: NDArray[np.float64], z: NDArray[np.float64]) -> float:
        return float(((q / np.linalg.norm(q) - z / np.linalg.norm(z)) ** 2).sum())

    losses = []
    for first in range(0, len(predictions), 2):
        (q1, q2), (z1, z2) = predictions[first : first + 2], targets[first : first + 2]
        losses.append(distance(q1, z2) + distance(q2, z1))
    return float(np.mean(losses))


def random_values(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 16, generator=generator)


def network() -> ByolNetwork:
    result = tiny_network(BYOL)
    assert isinstance(result, ByolNetwork)
    return result


class ByolTest(two_views_case.TwoViewsCase):
    method: ClassVar[Byol] = BYOL
    learner: ClassVar = (dataclasses.replace(BYOL, momentum=0.9), 0.03)

    def outputs(self, embeddings: Tensor) -> ByolOutputs:
        return ByolOutputs(embeddings, embeddings, embeddings)

    def test_loss_equals_numpy(self) -> None:
        q, z = random_values(10, 0), random_values(10, 1)
        unit_q, unit_z = functional.normalize(q, dim=1), functional.normalize(z, dim=1)
        loss = BYOL.losses((unit_q, unit_z, unit_z), ()).loss
        expected = symmetrized_loss(q.double().numpy(), z.double().numpy())
        self.assertAlmostEqual(loss.item(), expected, places=5)

    def test_views_predict_each_other_and_not_themselves(self) -> None:
        targets = torch.eye(4)
        swapped = targets[[1, 0, 3, 2]]
        self.assertEqual(BYOL.losses((swapped, targets, targets), ()).loss.item(), 0.0)
        loss = BYOL.losses((targets, targets, targets), ()).loss.item()
        self.assertEqual(loss, BYOL.chance(BATCH)["loss"])
        self.assertEqual(BYOL.losses((-swapped, targets, targets), ()).loss.item(), 8.0)

    def test_targets_receive_no_gradient(self) -> None:
        predictions = random_values(8, 0).requires_grad_()
        targets = random_values(8, 1).requires_grad_()
        BYOL.losses((predictions, targets, targets), ()).loss.backward()
        assert predictions.grad is not None
        # Four images, each with the gradient -2 * target for both of its views.
        expected = -2 * targets.detach()[[1, 0, 3, 2, 5, 4, 7, 6]] / 4
        torch.testing.assert_close(predictions.grad, expected)
        self.assertIsNone(targets.grad)

    def test_target_network_computes_the_targets_without_gradient(self) -> None:
        model = network()
        for module in (model.momentum_encoder, model.momentum_projection):
            for parameter in module.parameters():
                parameter.add_(0.1)
        images = noise(2 * BATCH, 3, 32, 32) / 255
        outputs = model(images)
        targets = model.momentum_projection(model.momentum_encoder(images).mean((2, 3)))
        torch.testing.assert_close(outputs.targets, functional.normalize(targets, dim=1))
        online = model.prediction(model.projection(model.encoder(images).mean((2, 3))))
        torch.testing.assert_close(outputs.predictions, functional.normalize(online, dim=1))
        BYOL.losses(outputs, ()).loss.backward()
        for name, parameter in model.named_parameters():
            self.assertEqual(parameter.grad is None, name.startswith("momentum_"), name)

    def test_target_network_by_hand(self) -> None:
        before, after = train_tiny(BYOL, 2), train_tiny(BYOL, 3)
        # The third of the eight steps that `step_case` schedules.
        momentum = 1 - 0.25 * (math.cos(math.pi * 2 / 8) + 1) / 2
        for name in ("momentum_encoder.conv1.weight", "momentum_projection.3.weight"):
            trained = after["parameters"][name.removeprefix("momentum_")]
            expected = momentum * before["buffers"][name] + (1 - momentum) * trained
            torch.testing.assert_close(after["buffers"][name], expected)
            self.assertFalse(torch.equal(after["buffers"][name], trained))
        self.assertNotIn("momentum_prediction.0.weight", after["buffers"])

    def test_momentum_grows_from_its_base_to_one(self) -> None:
        method = dataclasses.replace(BYOL, momentum=0.996)
        values = [method.momentum_at(step, 100) for step in range(101)]
        self.assertAlmostEqual(values[0], 0.996)
        self.assertAlmostEqual(values[50], 0.998)
        self.assertEqual(values[100], 1.0)
        self.assertEqual(values, sorted(values))

    def test_momentum_follows_the_whole_schedule_of_a_stopped_run(self) -> None:
        self.run_tiny(self.folder / "whole", every=4, keep_every=4)
        self.run_tiny(self.folder / "parts", stop_after_steps=4, every=4)
        whole = torch.load(
            self.folder / "whole" / "checkpoints" / "step_00000004.pt", weights_only=True
        )
        parts = torch.load(
            self.folder / "parts" / "checkpoints" / "step_00000004.pt", weights_only=True
        )
        self.assert_tensors_close(parts["buffers"], whole["buffers"], 0.0)

    def test_first_step_copies_the_online_network(self) -> None:
        model = network()
        with torch.no_grad():
            model.encoder.get_parameter("conv1.weight").add_(1.0)
            BYOL.update_state(model, (), 0, 10)
        self.assertTrue(
            torch.equal(
                model.momentum_encoder.get_parameter("conv1.weight"),
                model.encoder.get_parameter("conv1.weight"),
            )
        )

    @parameterized.parameters(
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"hidden_channels": 0}, "hidden_channels is 0"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"view_size": 0}, "view_size is 0"),
    )
    def test_rejects_settings_out_of_range(self, change: dict[str, object], message: str) -> None:
        self.assert_rejected(change, message)


if __name__ == "__main__":
    absltest.main()
