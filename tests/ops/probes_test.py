"""Probes side by side against torch's own layer, loss and optimizer, one at a time."""

import math

import torch
from absl.testing import absltest, parameterized
from torch import nn

from jigclu.ops import probes
from jigclu.system.errors import UserError

PAIRS = [(0.5, 0.0), (0.5, 0.1), (0.01, 0.1)]


def batch_of(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator)


class HeadsTest(parameterized.TestCase):
    def test_each_trains_as_it_would_alone(self) -> None:
        torch.manual_seed(0)
        together = probes.initial_probes(len(PAIRS), 3, 5)
        alone = []
        for rate, decay in PAIRS:
            layer = nn.Linear(5, 3)
            with torch.no_grad():
                layer.weight.copy_(together.weight[0])
                layer.bias.zero_()
            alone.append((layer, torch.optim.SGD(layer.parameters(), rate, 0.9, 0.0, decay)))
        momenta = probes.Probes(*map(torch.zeros_like, together))
        rates, decays = (torch.tensor(values) for values in zip(*PAIRS, strict=True))
        for index in range(4):
            features, labels = batch_of(index)
            together = probes.Probes(*(value.requires_grad_() for value in together))
            logits = probes.probe_logits(together, features)
            losses = probes.probe_losses(logits, labels)
            gradients = probes.Probes(*torch.autograd.grad(losses.mean(1).sum(), together))
            with torch.no_grad():
                together, momenta = probes.step(together, gradients, momenta, rates, decays, 0.9)
            for number, (layer, optimizer) in enumerate(alone):
                optimizer.zero_grad()
                torch.testing.assert_close(logits[number], layer(features))
                loss = nn.functional.cross_entropy(layer(features), labels, reduction="none")
                loss.mean().backward()
                optimizer.step()
                torch.testing.assert_close(losses[number], loss)
                torch.testing.assert_close(together.weight[number], layer.weight.detach())
                torch.testing.assert_close(together.bias[number], layer.bias.detach())

    def test_hand_computed(self) -> None:
        one = probes.Probes(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[0.0, math.log(3.0)]]))
        logits = probes.probe_logits(one, torch.tensor([[2.0]]))
        torch.testing.assert_close(logits, torch.tensor([[[2.0, math.log(3.0)]]]))
        # -log(3 / (e^2 + 3)).
        loss = probes.probe_losses(logits, torch.tensor([1]))
        torch.testing.assert_close(loss, torch.tensor([[math.log((math.e**2 + 3) / 3)]]))

    def test_begin_small_and_alike(self) -> None:
        torch.manual_seed(0)
        begun = probes.initial_probes(2, 100, 512)
        self.assertAlmostEqual(begun.weight.std().item(), 0.01, delta=1e-4)
        self.assertTrue(torch.equal(begun.weight[0], begun.weight[1]))
        self.assertEqual(begun.bias.abs().max().item(), 0.0)

    def test_every_pair(self) -> None:
        expected = [(1.0, 0.0), (1.0, 0.1), (2.0, 0.0), (2.0, 0.1)]
        self.assertEqual(probes.probe_settings((1.0, 2.0), (0.0, 0.1)), expected)

    @parameterized.parameters(
        ((), (0.0,), "learning_rates are"),
        ((1.0, 1.0), (0.0,), "all different"),
        ((1.0, -1.0), (0.0,), "learning_rate is -1.0"),
        ((1.0,), (-0.1,), "weight_decay is -0.1"),
    )
    def test_refuses(
        self, rates: tuple[float, ...], decays: tuple[float, ...], message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            probes.probe_settings(rates, decays)


if __name__ == "__main__":
    absltest.main()
