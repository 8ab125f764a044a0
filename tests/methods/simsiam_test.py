"""SimSiam against NumPy, with a stop-gradient that stops; and what `two_views_case` checks."""

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from absl.testing import absltest, parameterized
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jigclu.methods.simsiam import SimSiam, SimSiamNetwork, SimSiamOutputs
from tests.methods import two_views_case
from tests.samples import BATCH, SIMSIAM, TinyEncoder, noise, tiny_network


def symmetrized_loss(predictions: NDArray[np.float64], projections: NDArray[np.float64]) -> float:
    """Equation 2 of SimSiam, image by image: rows 2k and 2k + 1 are the views of image k."""

    def distance(p: NDArray[np.float64], z: NDArray[np.float64]) -> float:
        return float(-(p / np.linalg.norm(p)) @ (z / np.linalg.norm(z)))

    losses = []
    for first in range(0, len(predictions), 2):
        (p1, p2), (z1, z2) = predictions[first : first + 2], projections[first : first + 2]
        losses.append(distance(p1, z2) / 2 + distance(p2, z1) / 2)
    return float(np.mean(losses))


def random_values(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 16, generator=generator)


def network() -> SimSiamNetwork:
    result = tiny_network(SIMSIAM)
    assert isinstance(result, SimSiamNetwork)
    return result


class SimSiamTest(two_views_case.TwoViewsCase):
    method: ClassVar[SimSiam] = SIMSIAM
    learner: ClassVar = (
        dataclasses.replace(SIMSIAM, embedding_channels=64, prediction_channels=16),
        0.03,
    )

    def outputs(self, embeddings: Tensor) -> SimSiamOutputs:
        return SimSiamOutputs(embeddings, embeddings, embeddings)

    def test_loss_equals_numpy(self) -> None:
        p, z = random_values(10, 0), random_values(10, 1)
        unit_p, unit_z = functional.normalize(p, dim=1), functional.normalize(z, dim=1)
        loss = SIMSIAM.losses((unit_p, unit_z, unit_z), ()).loss
        expected = symmetrized_loss(p.double().numpy(), z.double().numpy())
        self.assertAlmostEqual(loss.item(), expected, places=6)

    def test_views_predict_each_other_and_not_themselves(self) -> None:
        projections = torch.eye(4)
        swapped = projections[[1, 0, 3, 2]]
        self.assertEqual(SIMSIAM.losses((swapped, projections, projections), ()).loss.item(), -1.0)
        self.assertEqual(
            SIMSIAM.losses((projections, projections, projections), ()).loss.item(), 0.0
        )
        self.assertEqual((SIMSIAM.chance(4)["loss"], SIMSIAM.floor(4)["loss"]), (0.0, -1.0))

    def test_targets_receive_no_gradient(self) -> None:
        predictions = random_values(8, 0).requires_grad_()
        projections = random_values(8, 1).requires_grad_()
        SIMSIAM.losses((predictions, projections, projections), ()).loss.backward()
        assert predictions.grad is not None
        expected = -projections.detach()[[1, 0, 3, 2, 5, 4, 7, 6]] / 8
        torch.testing.assert_close(predictions.grad, expected)
        self.assertIsNone(projections.grad)

    def test_gradient_passes_through_the_prediction_only(self) -> None:
        images = noise(2 * BATCH, 3, 32, 32) / 255
        with_loss, with_constant = network(), network()
        SIMSIAM.losses(with_loss(images), ()).loss.backward()
        outputs = with_constant(images)
        constant = outputs.projections.detach().clone()[[1, 0, 3, 2, 5, 4, 7, 6]]
        (-(outputs.predictions * constant).sum(1).mean()).backward()
        for (name, ours), theirs in zip(
            with_loss.named_parameters(), with_constant.parameters(), strict=True
        ):
            if ours.requires_grad:
                torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
            else:
                self.assertIsNone(ours.grad)

    def test_heads_are_those_of_the_paper(self) -> None:
        model = dataclasses.replace(
            SIMSIAM, embedding_channels=2048, prediction_channels=512
        ).network(TinyEncoder())
        kinds = [type(layer).__name__ for layer in model.projection]
        block = ["Linear", "BatchNorm", "ReLU"]
        self.assertEqual(kinds, [*block, *block, "Linear", "BatchNorm"])
        self.assertEqual([type(layer).__name__ for layer in model.prediction], [*block, "Linear"])
        frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
        self.assertEqual(frozen, ["projection.7.weight", "projection.7.bias"])
        self.assertEqual(model.prediction[0].out_features, 512)

    def test_projections_are_normalized_over_the_batch(self) -> None:
        model = network()
        with torch.no_grad():
            features = model.encoder(noise(2 * BATCH, 3, 32, 32) / 255).mean((2, 3))
            projections = model.projection(features)
        torch.testing.assert_close(projections.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            projections.std(0, correction=0), torch.ones(16), atol=0.05, rtol=0
        )

    @parameterized.parameters(
        ({"embedding_channels": 0}, "embedding_channels is 0"),
        ({"prediction_channels": 0}, "prediction_channels is 0"),
        ({"view_size": 0}, "view_size is 0"),
    )
    def test_rejects_settings_out_of_range(self, change: dict[str, object], message: str) -> None:
        self.assert_rejected(change, message)


if __name__ == "__main__":
    absltest.main()
