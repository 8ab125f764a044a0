"""Tests of jigclu.system.collectives, on one process and on gloo ranks."""

from typing import Any, NamedTuple

import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from jigclu.ops import jigsaw
from jigclu.system import collectives
from tests.ranks import run_on_ranks

GRID = 2
BATCH = 3  # Images of one rank.
STEPS = 4


class Probe(NamedTuple):
    """Results of every function on one rank."""

    rank: int
    world_size: int
    agreed: str
    total: Tensor
    mean: Tensor
    side_by_side: Tensor
    gathered: Tensor
    gradient: Tensor
    slots: list[Tensor]
    slots_of_transposed: list[Tensor]


def all_values(world_size: int) -> Tensor:
    """All ranks' values: [world_size * 2, 3]."""
    return torch.randn(world_size * 2, 3, generator=torch.Generator().manual_seed(world_size))


def rank_loss(values: Tensor, rank: int) -> Tensor:
    """A loss of all values that differs from rank to rank."""
    return ((rank + 1.5) * values).sin().sum() + values.prod()


def all_patches(world_size: int) -> Tensor:
    """All ranks' patches, all different: uint8 [world_size * BATCH, GRID**2, 3, 5, 5]."""
    generator = torch.Generator().manual_seed(world_size)
    shape = (world_size * BATCH, GRID**2, 3, 5, 5)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def all_permutations(world_size: int) -> list[Tensor]:
    """Random permutations, then two extremes: the identity and the reversed order."""
    count = world_size * BATCH * GRID**2
    drawn = [jigsaw.global_permutation(0, step, count) for step in range(STEPS)]
    return [*drawn, torch.arange(count), torch.arange(count).flip(0)]


def probe() -> tuple[Any, ...]:
    """Runs on every rank."""
    rank, world_size = collectives.rank(), collectives.world_size()
    own = all_values(world_size).chunk(world_size)[rank].requires_grad_()
    gathered = collectives.gather_with_gradient(own)
    rank_loss(gathered, rank).backward()
    assert own.grad is not None
    values = own.detach()
    collectives.barrier()
    patches = all_patches(world_size)[rank * BATCH : (rank + 1) * BATCH]
    transposed = patches.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return tuple(
        Probe(
            rank,
            world_size,
            collectives.broadcast(f"of rank {rank}"),
            collectives.sum_over_ranks(values),
            collectives.mean_over_ranks(values),
            collectives.gather(values, dim=1),
            gathered.detach().clone(),
            own.grad,
            *(
                [
                    collectives.exchange_patches(layout, each)
                    for each in all_permutations(world_size)
                ]
                for layout in (patches, transposed)
            ),
        )
    )


def fail_on_rank_one() -> None:
    if collectives.rank() == 1:
        raise ValueError("failure on rank 1")


class OneProcessTest(absltest.TestCase):
    def test_single_process_is_rank_0_of_1(self) -> None:
        self.assertEqual((collectives.rank(), collectives.world_size()), (0, 1))

    def test_broadcast_returns_its_argument(self) -> None:
        self.assertEqual(collectives.broadcast("mine"), "mine")

    def test_sum_mean_and_gather_return_their_argument(self) -> None:
        values = torch.randn(3, 2)
        self.assertTrue(torch.equal(collectives.sum_over_ranks(values), values))
        self.assertTrue(torch.equal(collectives.mean_over_ranks(values), values))
        self.assertTrue(torch.equal(collectives.gather(values, dim=1), values))
        self.assertIs(collectives.gather_with_gradient(values), values)
        collectives.barrier()

    def test_exchange_indexes_patches_in_global_order(self) -> None:
        patches = all_patches(1)
        flat = patches.transpose(0, 1).flatten(0, 1)
        for permutation in all_permutations(1):
            actual = collectives.exchange_patches(patches, permutation)
            self.assertTrue(torch.equal(actual, flat[permutation]))


class ManyRanksTest(parameterized.TestCase):
    @parameterized.parameters(2, 3)
    def test_ranks_agree_with_one_process(self, world_size: int) -> None:
        probes = [Probe(*result) for result in run_on_ranks(probe, world_size)]
        self.assertEqual([each.rank for each in probes], list(range(world_size)))
        self.assertEqual([each.world_size for each in probes], [world_size] * world_size)
        self.assertEqual([each.agreed for each in probes], ["of rank 0"] * world_size)
        self._check_reductions(probes)
        self._check_gather(probes)
        self._check_exchange(probes)

    def _check_reductions(self, probes: list[Probe]) -> None:
        values = all_values(len(probes)).chunk(len(probes))
        for each in probes:
            torch.testing.assert_close(each.total, torch.stack(values).sum(0))
            torch.testing.assert_close(each.mean, torch.stack(values).mean(0))
            self.assertTrue(torch.equal(each.side_by_side, torch.cat(values, 1)))

    def _check_gather(self, probes: list[Probe]) -> None:
        values = all_values(len(probes)).requires_grad_()
        for each in probes:
            self.assertTrue(torch.equal(each.gathered, values))
        total = torch.stack([rank_loss(values, each.rank) for each in probes]).sum()
        (expected,) = torch.autograd.grad(total, values)
        torch.testing.assert_close(torch.cat([each.gradient for each in probes]), expected)

    def _check_exchange(self, probes: list[Probe]) -> None:
        patches = all_patches(len(probes))
        for index, permutation in enumerate(all_permutations(len(probes))):
            # Without a process group this is the result of one rank that holds all images.
            expected = collectives.exchange_patches(patches, permutation)
            for slots in ("slots", "slots_of_transposed"):
                actual = torch.cat([getattr(each, slots)[index] for each in probes])
                self.assertEqual(actual.dtype, torch.uint8)
                self.assertTrue(torch.equal(actual, expected))

    def test_error_of_a_rank_is_raised(self) -> None:
        with self.assertRaisesRegex(ProcessRaisedException, "failure on rank 1"):
            run_on_ranks(fail_on_rank_one, 2)


if __name__ == "__main__":
    absltest.main()
