"""Tests of jigclu.tasks.benchmark.growth."""

import dataclasses
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from absl.testing import absltest

from jigclu.methods.jigsaw import JigsawForward
from jigclu.ops import jigsaw, losses
from jigclu.system import collectives
from jigclu.tasks.benchmark import growth
from jigclu.tasks.benchmark.timing import Seconds
from jigclu.tasks.pretrain import PretrainTask
from tests.ranks import run_on_ranks
from tests.samples import inputs_of, small_model
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")
TASK = PretrainTask(**PRETRAINING)


def received_in_a_forward() -> dict[str, int]:
    """Counts what this rank gathers from the others, of embeddings and of statistics."""
    task = dataclasses.replace(TASK, embedding_channels=16)
    forward = JigsawForward(small_model(), task.objective(), "float32", False, None)
    inputs = inputs_of(0)
    gathered: list[torch.Tensor] = []
    gather = collectives._all_gather

    def counting(values: torch.Tensor, *rest: Any) -> torch.Tensor:
        gathered.append(values)
        return gather(values, *rest)

    with mock.patch.object(collectives, "_all_gather", counting):
        forward(*inputs)
    others = dist.get_world_size() - 1
    sizes = [others * values.numel() * values.element_size() for values in gathered]
    return {"embeddings": sizes[-1], "statistics": sum(sizes[:-1])}


def patches_received(steps: int) -> float:
    """Returns the mean number of patches a step that this rank gets from others."""
    counts = []
    exchange = dist.all_to_all_single

    def counting(*arguments: Any, **splits: Any) -> None:
        sizes = splits["output_split_sizes"]
        counts.append(sum(sizes) - sizes[dist.get_rank()])
        exchange(*arguments, **splits)

    patches = torch.zeros(2, 4, 3, 1, 1, dtype=torch.uint8)
    with mock.patch.object(dist, "all_to_all_single", counting):
        for step in range(steps):
            collectives.exchange_patches(patches, jigsaw.global_permutation(0, step, 16))
    return sum(counts) / steps


class GrowthTest(absltest.TestCase):
    def test_losses_are_measured_until_they_take_too_long(self) -> None:
        taken = {"ours": [1.0, 2.0], "published": [3.0]}
        asked = []

        def timed(actions: dict[str, Any], repetitions: int, _: torch.device) -> dict[str, Any]:
            asked.append((list(actions), repetitions))
            return {name: Seconds(taken[name].pop(0), 0.0, 9.0) for name in actions}

        with mock.patch.object(growth, "interleaved", timed):
            table = growth.measure_loss(TASK, (16, 64, 256), 31.0, 5, CPU)
        # 4 times the patches take 16 times as long: 16 s may be, 48 and 32 are too many.
        self.assertEqual([row[0] for row in table.rows], [16, 64, 256])
        self.assertEqual([row[1] for row in table.rows], [1.0, 2.0, None])
        self.assertEqual([row[3] for row in table.rows], [3.0, None, None])
        self.assertEqual(asked, [(["ours", "published"], 5), (["ours"], 1), ([], 1)])

    def test_matrices_that_do_not_fit_are_left_out(self) -> None:
        with (
            mock.patch.object(growth, "free_memory", return_value=4 * 8 * 32**2),
            mock.patch.object(losses, "ANCHORS_AT_ONCE", 16),
        ):
            table = growth.measure_loss(TASK, (16, 32, 64), 60.0, 1, CPU)
        self.assertEqual([row[3] is None for row in table.rows], [False, False, True])
        self.assertNotIn(None, [row[1] for row in table.rows])

    def test_bytes_received_are_those_of_two_ranks(self) -> None:
        # `small_model` is smaller than the task's: of the embeddings and statistics alone.
        task = dataclasses.replace(TASK, embedding_channels=16)
        with mock.patch.object(PretrainTask, "model", lambda _: small_model()):
            expected = growth.bytes_received(task, 2)
        for counted in run_on_ranks(received_in_a_forward, 2):
            # Forward; as much comes back.
            self.assertEqual(2 * counted["embeddings"], expected["embeddings"])
            self.assertEqual(2 * counted["statistics"], expected["statistics"])
        patch = 3 * TASK.patch_size**2
        for count in run_on_ranks(patches_received, 2, 200):
            self.assertAlmostEqual(
                count * patch, expected["patches"], delta=0.05 * expected["patches"]
            )

    def test_one_rank_receives_nothing_and_sums_come_by_twice(self) -> None:
        self.assertEqual(set(growth.bytes_received(TASK, 1).values()), {0.0})
        # 11,168,832 parameters of the encoder and 330,372 of the heads.
        gradients = growth.bytes_received(TASK, 4)["gradients"]
        self.assertEqual(gradients, 2 * 4 * 11_499_204 * 3 / 4)
        # 16 patches of 768 values in float32, three quarters of them from others.
        self.assertEqual(growth.published_patches_received(TASK, 4), 4 * 16 * 768 * 3 / 4)
        table = growth.exchanged(TASK, (1, 4))
        self.assertAlmostEqual(table.rows[1][5], sum(table.rows[1][1:5]))
        # Theirs are the same but for the patches.
        self.assertAlmostEqual(table.rows[1][7], table.rows[1][6] + sum(table.rows[1][2:5]))


if __name__ == "__main__":
    absltest.main()
