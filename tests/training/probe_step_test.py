"""A step of several probes equals torch.optim.SGD, also with uneven shares of ranks."""

import torch
from absl.testing import absltest
from torch import Tensor, nn
from torch.nn import functional

from jigclu.ops.probes import initial_probes
from jigclu.system import collectives
from jigclu.training.probe_step import ProbeStep, initial_state, to_probes
from tests.ranks import run_on_ranks

SETTINGS = [(0.1, 0.0), (0.2, 0.01)]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator), torch.tensor([0, 2, 1, 1, 0])


def take_steps(first_rank_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns weights, loss and accuracy after two steps; the ranks share the rows unevenly."""
    torch.manual_seed(0)
    state = initial_state(initial_probes(2, 3, 4), {})
    step = ProbeStep(SETTINGS, 0.9, torch.device("cpu"))
    features, labels = batch()
    own = slice(None)
    if collectives.world_size() > 1:
        own = (slice(first_rank_rows), slice(first_rank_rows, None))[collectives.rank()]
    for factor in (1.0, 0.5):
        state, metrics = step(state, features[own], labels[own], 5, factor)
    return to_probes(state).weight.clone(), metrics["loss"], metrics["accuracy"]


class ProbeStepTest(absltest.TestCase):
    def test_every_probe_takes_the_steps_of_its_own_optimizer(self) -> None:
        weights, loss, accuracy = take_steps(5)
        features, labels = batch()
        losses, accuracies = [], []
        for number, (rate, decay) in enumerate(SETTINGS):
            torch.manual_seed(0)
            layer = nn.Linear(4, 3)
            with torch.no_grad():
                torch.manual_seed(0)
                layer.weight.copy_(initial_probes(2, 3, 4).weight[0])
                layer.bias.zero_()
            optimizer = torch.optim.SGD(layer.parameters(), rate, 0.9, weight_decay=decay)
            for factor in (1.0, 0.5):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.zero_grad()
                logits = layer(features)
                entropy = functional.cross_entropy(logits, labels)
                entropy.backward()
                optimizer.step()
            losses.append(entropy.item())
            accuracies.append((logits.argmax(1) == labels).float().mean().item())
            torch.testing.assert_close(weights[number], layer.weight.detach())
        self.assertAlmostEqual(loss.item(), min(losses), places=6)
        self.assertAlmostEqual(accuracy.item(), max(accuracies), places=6)

    def test_uneven_and_empty_shares_of_ranks_change_nothing(self) -> None:
        alone = take_steps(5)
        for rows in (2, 0):
            for rank in run_on_ranks(take_steps, 2, rows):
                for actual, expected in zip(rank, alone, strict=True):
                    torch.testing.assert_close(actual, expected)

    def test_a_diverged_probe_does_not_hide_the_best(self) -> None:
        state = initial_state(initial_probes(2, 3, 4), {})
        state.parameters["fc.weight"][1] = torch.inf
        step = ProbeStep(SETTINGS, 0.9, torch.device("cpu"))
        features, labels = batch()
        _, metrics = step(state, features, labels, 5, 1.0)
        self.assertTrue(metrics["loss"].isfinite())


if __name__ == "__main__":
    absltest.main()
