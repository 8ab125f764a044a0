"""Tests of jigclu.ops.probes; probes side by side against single layers trained by torch."""

import math

import torch
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.ops import probes
from jigclu.system.errors import UserError

PAIRS = [(0.5, 0.0), (0.5, 0.1), (0.01, 0.1)]


def random_batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)


class ProbesTest(parameterized.TestCase):
    def test_each_probe_trains_as_a_layer_by_itself(self) -> None:
        torch.manual_seed(0)
        together = probes.initial_probes(len(PAIRS), 3, 5)
        separate = []
        for rate, decay in PAIRS:
            layer = nn.Linear(5, 3)
            with torch.no_grad():
                layer.weight.copy_(together.weight[0])
                layer.bias.zero_()
            separate.append((layer, torch.optim.SGD(layer.parameters(), rate, 0.9, 0.0, decay)))
        momenta = probes.Probes(*map(torch.zeros_like, together))
        rates, decays = (torch.tensor(values) for values in zip(*PAIRS, strict=True))
        for index in range(4):
            features, labels = random_batch(index)
            together = probes.Probes(*(value.requires_grad_() for value in together))
            logits = probes.probe_logits(together, features)
            losses = probes.probe_losses(logits, labels)
            gradients = probes.Probes(*torch.autograd.grad(losses.mean(1).sum(), together))
            with torch.no_grad():
                together, momenta = probes.step(together, gradients, momenta, rates, decays, 0.9)
            for number, (layer, optimizer) in enumerate(separate):
                optimizer.zero_grad()
                torch.testing.assert_close(logits[number], layer(features))
                loss = nn.functional.cross_entropy(layer(features), labels, reduction="none")
                loss.mean().backward()
                optimizer.step()
                torch.testing.assert_close(losses[number], loss)
                torch.testing.assert_close(together.weight[number], layer.weight.detach())
                torch.testing.assert_close(together.bias[number], layer.bias.detach())

    def test_logits_and_loss_by_hand(self) -> None:
        probe = probes.Probes(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[0.0, math.log(3.0)]]))
        logits = probes.probe_logits(probe, torch.tensor([[2.0]]))
        torch.testing.assert_close(logits, torch.tensor([[[2.0, math.log(3.0)]]]))
        # -log(3 / (e^2 + 3)).
        loss = probes.probe_losses(logits, torch.tensor([1]))
        torch.testing.assert_close(loss, torch.tensor([[math.log((math.e**2 + 3) / 3)]]))

    def test_initial_probes_are_small_and_equal(self) -> None:
        torch.manual_seed(0)
        initial = probes.initial_probes(2, 100, 512)
        self.assertAlmostEqual(initial.weight.std().item(), 0.01, delta=1e-4)
        self.assertTrue(torch.equal(initial.weight[0], initial.weight[1]))
        self.assertEqual(initial.bias.abs().max().item(), 0.0)

    def test_settings_are_all_pairs_of_rate_and_decay(self) -> None:
        expected = [(1.0, 0.0), (1.0, 0.1), (2.0, 0.0), (2.0, 0.1)]
        self.assertEqual(probes.probe_settings((1.0, 2.0), (0.0, 0.1)), expected)

    @parameterized.parameters(
        ((), (0.0,), r"^learning_rates is \(\); it must be one or more"),
        ((1.0, 1.0), (0.0,), r"^learning_rates is \(1.0, 1.0\)"),
        ((1.0, -1.0), (0.0,), r"^learning_rates is \(1.0, -1.0\)"),
        ((math.nan,), (0.0,), "^learning_rates is"),
        ((1.0,), (), r"^weight_decays is \(\); it must be one or more"),
        ((1.0,), (-0.1,), r"^weight_decays is \(-0.1,\)"),
    )
    def test_rejects_settings_out_of_range_or_repeated(
        self, rates: tuple[float, ...], decays: tuple[float, ...], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            probes.probe_settings(rates, decays)


if __name__ == "__main__":
    absltest.main()
