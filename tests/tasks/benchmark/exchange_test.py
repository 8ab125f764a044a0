"""Tests of jigclu.tasks.benchmark.exchange."""

from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from absl.testing import absltest

from jigclu.methods.forward import MethodForward
from jigclu.ops import jigsaw
from jigclu.system import collectives
from jigclu.tasks.benchmark import exchange
from jigclu.tasks.benchmark.exchange import Exchange, Received
from jigclu.tasks.benchmark.noise_steps import NetworkSize, network_size
from jigclu.tasks.benchmark.workload import describe
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings
from tests.ranks import run_on_ranks
from tests.samples import jigsaw_inputs, small_model
from tests.small_tasks import PRETRAINING

TASK = with_settings(PRETRAINING, embedding_channels=16)
# 4 images of 4 patches, each of 3 x 16 x 16 bytes.
PATCH_BYTES = 768


def received_in_a_forward() -> dict[str, int]:
    """Counts the bytes of embeddings and statistics that this rank gathers from the others."""
    forward = MethodForward(TASK.method, small_model(), "float32", False, None, 1)
    inputs = jigsaw_inputs(0)
    gathered: list[torch.Tensor] = []
    gather = collectives._all_gather

    def count(values: torch.Tensor, *rest: Any) -> torch.Tensor:
        gathered.append(values)
        return gather(values, *rest)

    with mock.patch.object(collectives, "_all_gather", count):
        forward(*inputs)
    others = dist.get_world_size() - 1
    sizes = [others * values.numel() * values.element_size() for values in gathered]
    return {"embeddings": sizes[-1], "statistics": sum(sizes[:-1])}


def patches_received(steps: int) -> float:
    """Returns the mean number of patches per step that this rank receives from others."""
    counts = []
    all_to_all = dist.all_to_all_single

    def count(*arguments: Any, **splits: Any) -> None:
        sizes = splits["output_split_sizes"]
        counts.append(sum(sizes) - sizes[dist.get_rank()])
        all_to_all(*arguments, **splits)

    patches = torch.zeros(2, 4, 3, 1, 1, dtype=torch.uint8)
    with mock.patch.object(dist, "all_to_all_single", count):
        for step in range(steps):
            collectives.exchange_patches(patches, jigsaw.global_permutation(0, step, 16))
    return sum(counts) / steps


class ExchangeTest(absltest.TestCase):
    def test_computed_bytes_are_those_that_two_ranks_receive(self) -> None:
        with mock.patch.object(PretrainTask, "network", lambda _: small_model()):
            network = network_size(TASK)
        expected = exchange.bytes_received(describe(TASK), network, 2)
        for counted in run_on_ranks(received_in_a_forward, 2):
            # The backward pass returns as much.
            self.assertEqual(2 * counted["embeddings"], expected.embeddings)
            self.assertEqual(2 * counted["statistics"], expected.statistics)
        for count in run_on_ranks(patches_received, 2, 200):
            self.assertAlmostEqual(
                count * PATCH_BYTES, expected.patches, delta=0.05 * expected.patches
            )

    def test_every_kind_for_one_rank_and_several(self) -> None:
        network = NetworkSize(parameters=1000, statistics=50)
        self.assertEqual(
            exchange.compute_exchange(describe(TASK), network, (1, 2, 4)),
            [
                Exchange(1, Received(0, 0, 0, 0), 0),
                Exchange(
                    ranks=2,
                    received=Received(
                        # A rank shows 8 patches, of which 4 are those of the other.
                        patches=4 * PATCH_BYTES,
                        embeddings=8 * 16 * 4 * 2,
                        statistics=50 * 1 * 4 * 2,
                        gradients=1000 * 4 * 2 / 2,
                    ),
                    published_patches=8 * PATCH_BYTES * 4,
                ),
                Exchange(
                    ranks=4,
                    received=Received(
                        # A rank shows 4 patches, of which 3 are those of others.
                        patches=3 * PATCH_BYTES,
                        # 12 embeddings of others, 16 channels of 4 bytes, and their gradients.
                        embeddings=12 * 16 * 4 * 2,
                        # 50 statistics of 3 others, of 4 bytes, and their gradients.
                        statistics=50 * 3 * 4 * 2,
                        # 1000 gradients of 4 bytes; 3 quarters arrive twice.
                        gradients=1000 * 4 * 2 * 3 / 4,
                    ),
                    # All 12 patches of others, in float32.
                    published_patches=12 * PATCH_BYTES * 4,
                ),
            ],
        )


if __name__ == "__main__":
    absltest.main()
