"""Micro-batches equal the whole batch, on two ranks and compiled."""

from typing import Any

import torch
from absl.testing import absltest, parameterized
from torch import Tensor, nn

from jigclu.models.jigclu import Outputs
from tests.ranks import run_on_ranks
from tests.samples import EXTENDED, jigsaw_inputs, tiny_model
from tests.step_case import StepTestCase, double_model, explicit_losses, train, train_tiny


class MicroBatchesTest(StepTestCase):
    @parameterized.parameters(1, 2, 4)
    def test_micro_batches_without_batch_norm_equal_the_whole_batch(
        self, micro_batch_size: int
    ) -> None:
        whole = train(3, norm_layer=nn.Identity)
        pieces = train(3, micro_batch_size=micro_batch_size, norm_layer=nn.Identity)
        self.assert_metrics_close(pieces["metrics"], whole["metrics"], 1e-5)
        self.assert_tensors_close(pieces["gradients"], whole["gradients"], 1e-5)
        self.assert_tensors_close(pieces["parameters"], whole["parameters"], 1e-4)

    def test_micro_batches_of_the_extended_method_equal_the_whole_batch(self) -> None:
        whole = train_tiny(EXTENDED, norm_layer=nn.Identity)
        pieces = train_tiny(EXTENDED, norm_layer=nn.Identity, micro_batch_size=1)
        self.assert_metrics_close(pieces["metrics"], whole["metrics"], 1e-5)
        for part in ("gradients", "parameters", "buffers"):
            self.assert_tensors_close(pieces[part], whole[part], 1e-4)

    def test_micro_batches_on_two_ranks_equal_the_whole_batch_on_one(self) -> None:
        whole = train(3, norm_layer=nn.Identity)
        first, second = run_on_ranks(train, 2, 3, False, "float32", 1, nn.Identity)
        self.assert_metrics_close(first["metrics"], whole["metrics"], 1e-5)
        self.assert_tensors_close(first["gradients"], whole["gradients"], 1e-5)
        for name, value in first["parameters"].items():
            self.assertTrue(torch.equal(second["parameters"][name], value), name)

    def test_micro_batches_on_two_ranks_share_their_statistics(self) -> None:
        first, second = run_on_ranks(train, 2, 2, False, "float32", 1)
        for name in ("parameters", "buffers"):
            for key, value in first[name].items():
                self.assertTrue(torch.equal(second[name][key], value), key)

    def test_micro_batches_equal_plain_ones_without_recomputation(self) -> None:
        model = double_model()
        inputs = jigsaw_inputs(0)

        def pieces(montages: Tensor) -> Outputs:
            outputs = [model(piece) for piece in montages.split(2)]
            return Outputs(*map(torch.cat, zip(*outputs, strict=True)))

        clustering, location, _ = explicit_losses(pieces, inputs)
        (clustering + location).backward()
        gradients = {f"{n}": p.grad + 1e-4 * p for n, p in model.named_parameters()}  # type: ignore[operator]
        result = train(1, micro_batch_size=2, build=double_model)
        self.assertAlmostEqual(
            result["metrics"][0]["loss"], (clustering + location).item(), delta=1e-4
        )
        self.assert_tensors_close(result["gradients"], gradients, 1e-5)
        # Each micro-batch changes them once, and not again in its recomputation.
        self.assert_tensors_close(result["buffers"], dict(model.named_buffers()), 1e-5)

    def test_compiled_micro_batches_equal_eager_ones_without_recompilation(self) -> None:
        settings: dict[str, Any] = {
            "micro_batch_size": 2,
            "norm_layer": nn.Identity,
            "build": tiny_model,
        }
        torch._dynamo.utils.counters.clear()
        eager, compiled = train(3, **settings), train(3, use_compile=True, **settings)
        self.assertEqual(compiled["graph_breaks"], 0)
        # A micro-batch with and without gradient, the losses and the update.
        self.assertEqual(torch._dynamo.utils.counters["stats"]["unique_graphs"], 4)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-4)
        self.assert_tensors_close(compiled["gradients"], eager["gradients"], 1e-4)

    def test_compiled_micro_batches_change_buffers_once(self) -> None:
        # With two images per micro-batch, a second step would depend on rounding.
        eager = train(1, micro_batch_size=2, build=tiny_model)
        compiled = train(1, use_compile=True, micro_batch_size=2, build=tiny_model)
        self.assert_metrics_close(compiled["metrics"], eager["metrics"], 1e-3)
        self.assert_tensors_close(compiled["buffers"], eager["buffers"], 1e-4)


if __name__ == "__main__":
    absltest.main()
