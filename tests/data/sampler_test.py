"""Tests of jigclu.data.sampler."""

from absl.testing import absltest, parameterized

from jigclu.data import sampler
from jigclu.system.errors import UserError


def batches(
    rank: int = 0, world_size: int = 1, seed: int = 0, start_step: int = 0, total_steps: int = 9
) -> list[list[tuple[int, int]]]:
    """Returns batches of 12 of 53 images: 4 steps per epoch, 5 images dropped."""
    return list(
        sampler.GlobalBatchSampler(
            length=53,
            batch_size=12,
            rank=rank,
            world_size=world_size,
            seed=seed,
            start_step=start_step,
            total_steps=total_steps,
        )
    )


class GlobalBatchSamplerTest(parameterized.TestCase):
    def test_no_image_occurs_twice_in_an_epoch(self) -> None:
        steps = batches()
        self.assertLen(steps, 9)
        self.assertEqual([step[0][0] for step in steps], [0] * 4 + [1] * 4 + [2])
        for epoch in (0, 1):
            seen = [index for step in steps for its_epoch, index in step if its_epoch == epoch]
            self.assertLen(set(seen), 48)
            self.assertContainsSubset(seen, range(53))

    def test_order_differs_between_epochs_and_seeds(self) -> None:
        def order(steps: list[list[tuple[int, int]]]) -> list[int]:
            return [index for step in steps for _, index in step]

        steps = batches()
        self.assertNotEqual(order(steps[:4]), order(steps[4:8]))
        self.assertNotEqual(order(steps), order(batches(seed=1)))

    @parameterized.parameters(1, 2, 3, 4, 12)
    def test_ranks_together_yield_the_global_batch(self, world_size: int) -> None:
        ranks = [batches(rank, world_size) for rank in range(world_size)]
        union = [[item for part in step for item in part] for step in zip(*ranks, strict=True)]
        self.assertEqual(union, batches())

    @parameterized.parameters(0, 1, 4, 6, 9)
    def test_resumed_run_continues_where_it_stopped(self, start_step: int) -> None:
        resumed = batches(rank=1, world_size=2, start_step=start_step)
        self.assertEqual(resumed, batches(rank=1, world_size=2)[start_step:])

    def test_can_be_iterated_repeatedly(self) -> None:
        steps = sampler.GlobalBatchSampler(
            length=8, batch_size=4, rank=0, world_size=1, seed=0, start_step=1, total_steps=5
        )
        self.assertLen(steps, 4)
        self.assertEqual(list(steps), list(steps))

    def test_rejects_a_batch_that_ranks_cannot_share(self) -> None:
        message = (
            "batch_size is 12; it must be a multiple of 5, the number of processes, such as 10"
        )
        with self.assertRaisesRegex(UserError, message):
            batches(world_size=5)


class StepsPerEpochTest(absltest.TestCase):
    def test_drops_the_incomplete_batch(self) -> None:
        self.assertEqual(sampler.steps_per_epoch(1281167, 256), 5004)
        self.assertEqual(sampler.steps_per_epoch(256, 256), 1)


class CheckBatchSizeTest(parameterized.TestCase):
    @parameterized.parameters((2, 2, 1), (256, 256, 8), (6, 100, 3))
    def test_accepts_batches_that_fit(self, batch_size: int, images: int, ranks: int) -> None:
        sampler.check_batch_size(batch_size, images, ranks)

    @parameterized.parameters(
        (256, 255, 1, "batch_size is 256; it must be at most 255, the training images"),
        (2, 255, 4, "batch_size is 2; it must be a multiple of 4, .*, such as 4"),
        (11, 255, 4, "batch_size is 11; it must be a multiple of 4, .*, such as 12"),
    )
    def test_rejects_others(self, batch_size: int, images: int, ranks: int, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            sampler.check_batch_size(batch_size, images, ranks)


if __name__ == "__main__":
    absltest.main()
