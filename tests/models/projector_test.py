"""The projection head of SimCLR against NumPy."""

import numpy as np
import torch
from absl.testing import absltest
from numpy.typing import NDArray

from jigclu.models.projector import Projector
from tests.samples import TinyEncoder, small_encoder


class ProjectorTest(absltest.TestCase):
    def test_equals_numpy(self) -> None:
        torch.manual_seed(0)
        model = Projector(TinyEncoder(), 16).eval()
        images = torch.rand(3, 3, 24, 24)
        with torch.no_grad():
            embeddings, _ = model(images)
            features = model.encoder(images).numpy().mean((2, 3))
        weights = {name: _array(value) for name, value in model.projection.named_parameters()}
        hidden = np.maximum(features @ weights["0.weight"].T + weights["0.bias"], 0)
        projected = hidden @ weights["2.weight"].T + weights["2.bias"]
        expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
        np.testing.assert_allclose(embeddings.numpy(), expected, rtol=1e-4, atol=1e-6)

    def test_hidden_layer_is_as_wide_as_the_features(self) -> None:
        model = Projector(small_encoder(), 16)
        self.assertEqual(model.projection[0].weight.shape, (512, 512))
        self.assertEqual(model.projection[2].weight.shape, (16, 512))

    def test_embeddings_are_float32_under_autocast(self) -> None:
        model = Projector(TinyEncoder(), 16)
        with torch.autocast("cpu", torch.bfloat16):
            embeddings, _ = model(torch.rand(3, 3, 24, 24))
        self.assertEqual(embeddings.dtype, torch.float32)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.detach().numpy()
    return array


if __name__ == "__main__":
    absltest.main()
