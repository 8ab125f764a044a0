"""The step against what the published code computes for the same weights and patches.

`data/published_step.npz` holds inputs, losses and gradients of the published step in float32,
for an encoder of one convolution, whose feature map is 7x7 or 4x4.
"""

from pathlib import Path

import numpy as np
import torch
from absl.testing import absltest, parameterized
from numpy.typing import NDArray
from torch import Tensor, nn

from jigclu.methods.jigsaw import JigsawLosses
from jigclu.models.encoder import Encoder
from jigclu.models.jigclu import JigClu
from jigclu.ops import jigsaw
from tests.samples import JIGSAW

_GRID, _IMAGES = 2, 5


class _OneConvolution(Encoder):
    channels = 16

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, self.channels, 5, stride=4, padding=2)
        self.relu = nn.ReLU()


def _published(case: str) -> dict[str, Tensor]:
    """Returns the arrays of a case, by name."""
    with np.load(Path(__file__).parent / "data" / "published_step.npz") as arrays:
        return {
            name.removeprefix(f"{case}/"): torch.from_numpy(arrays[name])
            for name in arrays
            if name.startswith(f"{case}/")
        }


def _network(arrays: dict[str, Tensor], pooling_map: int | None) -> JigClu:
    model = JigClu(_OneConvolution(), _GRID, pooling_map, embedding_channels=8)
    weights = {
        f"encoder.{name}" if name.startswith("conv1") else name: value
        for name, value in arrays.items()
        if name.endswith((".weight", ".bias"))
    }
    model.load_state_dict(weights)
    return model


def _our_permutation(published: Tensor) -> Tensor:
    """Reorders slots: published slot-major [slot, montage], here montage by montage."""
    return published.view(_GRID**2, _IMAGES).t().flatten()


def _step(model: JigClu, slots: Tensor, permutation: Tensor) -> JigsawLosses:
    return JIGSAW.losses(model(JIGSAW.network_inputs(slots)), (permutation,))


def _axis_weights(side: int) -> NDArray[np.float64]:
    """Returns [2, side]: bilinear resizing of one axis to 8, then means of its two halves."""
    weights = np.zeros((8, side))
    for row in range(8):
        # Pixels are areas whose centers lie at half integers (align_corners=False).
        position = min(max((row + 0.5) * side / 8 - 0.5, 0.0), side - 1.0)
        low = int(position)
        weights[row, low] += 1 - (position - low)
        weights[row, min(low + 1, side - 1)] += position - low
    return weights.reshape(2, 4, side).mean(1)


class PublishedStepTest(parameterized.TestCase):
    @parameterized.product(case=["map7", "map4"], compiled=[False, True])
    def test_losses_and_gradients_equal_the_published_ones(self, case: str, compiled: bool) -> None:
        arrays = _published(case)
        model = _network(arrays, pooling_map=8)
        maps: list[Tensor] = []
        if not compiled:  # Hooks would break the graph; the weights' gradients suffice.
            model.encoder.register_forward_hook(lambda _, __, output: maps.append(output))
        permutation = _our_permutation(arrays["permutation"])
        slots = arrays["patches"].flatten(0, 1)[permutation]
        step = torch.compile(_step, fullgraph=True, dynamic=False) if compiled else _step
        losses = step(model, slots, permutation)
        for name in ("clustering_loss", "location_loss"):
            torch.testing.assert_close(getattr(losses, name), arrays[name], rtol=1e-5, atol=0)
        for output in maps:
            output.retain_grad()
        losses.loss.backward()
        gradients = {
            name.removeprefix("encoder."): value.grad for name, value in model.named_parameters()
        }
        self.assertLen(gradients, 8)
        for name, gradient in gradients.items():
            self._assert_relatively_close(gradient, arrays[f"{name}/gradient"])
        for output in maps:
            torch.testing.assert_close(output, arrays["map"])
            self._assert_relatively_close(output.grad, arrays["map_gradient"])

    def test_loss_differs_without_resizing_the_map(self) -> None:
        arrays = _published("map7")
        permutation = _our_permutation(arrays["permutation"])
        slots = arrays["patches"].flatten(0, 1)[permutation]
        loss = _step(_network(arrays, pooling_map=None), slots, permutation).clustering_loss
        relative = (loss - arrays["clustering_loss"]).abs() / arrays["clustering_loss"]
        self.assertGreater(relative.item(), 1e-4)

    @parameterized.parameters("map7", "map4")
    def test_pooling_equals_an_interpolation_in_numpy(self, case: str) -> None:
        maps = _published(case)["map"]
        weights = _axis_weights(maps.shape[-1])
        expected = np.einsum("rh,sw,nchw->nrsc", weights, weights, maps.double().numpy())
        actual = jigsaw.split_features(maps, _GRID, 8)
        np.testing.assert_allclose(actual.numpy(), expected.reshape(-1, 16), rtol=1e-5, atol=1e-6)

    def _assert_relatively_close(self, actual: Tensor | None, expected: Tensor) -> None:
        assert actual is not None
        relative = (actual - expected).norm() / expected.norm()
        self.assertLess(relative.item(), 1e-4)


if __name__ == "__main__":
    absltest.main()
