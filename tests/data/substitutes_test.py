"""Tests of jigclu.data.substitutes."""

from collections import Counter
from collections.abc import Collection

from absl.testing import absltest, parameterized

from jigclu.data.sampler import epoch_order
from jigclu.data.substitutes import Substitutes

SEED = 5


def substitutes(length: int, batch_size: int, damaged: Collection[int]) -> Substitutes:
    return Substitutes(
        seed=SEED,
        length=length,
        batch_size=batch_size,
        is_readable=lambda index: index not in damaged,
    )


def epoch_of_batches(
    epoch: int, length: int, batch_size: int, damaged: Collection[int]
) -> list[list[int]]:
    """Returns the images that fill the batches of an epoch."""
    order = epoch_order(SEED, epoch, length).tolist()
    # A new object for each image, as other workers and ranks have.
    filled = [
        image
        if image not in damaged
        else next(
            candidate
            for candidate in substitutes(length, batch_size, damaged).candidates(epoch, image, 99)
            if candidate not in damaged
        )
        for image in order
    ]
    return [filled[first : first + batch_size] for first in range(0, length, batch_size)]


class SubstitutesTest(parameterized.TestCase):
    @parameterized.parameters((40, 4, 30), (40, 10, 30), (40, 8, 30), (11, 10, 1), (23, 5, 15))
    def test_images_of_a_batch_differ(self, length: int, batch_size: int, damaged: int) -> None:
        for epoch in range(5):
            for batch in epoch_of_batches(epoch, length, batch_size, range(damaged)):
                self.assertLen(set(batch), len(batch))
                self.assertGreaterEqual(min(batch), damaged)

    def test_a_run_of_damaged_files_is_spread_over_the_data(self) -> None:
        batches = epoch_of_batches(0, 1000, 10, range(100, 200))
        uses = Counter(image for batch in batches for image in batch)
        self.assertLessEqual(max(uses.values()), 4)

    def test_substitutes_differ_between_epochs(self) -> None:
        chosen = [next(substitutes(100, 4, [7]).candidates(epoch, 7, 99)) for epoch in range(8)]
        self.assertGreater(len(set(chosen)), 4)

    def test_images_occur_twice_only_if_too_few_are_readable(self) -> None:
        (batch,) = epoch_of_batches(0, 6, 6, [0, 1])
        self.assertEqual(sorted(Counter(batch).values()), [1, 1, 2, 2])

    def test_tries_no_more_images_than_allowed(self) -> None:
        self.assertLen(list(substitutes(1000, 2, range(1000)).candidates(0, 1, 9)), 9)
        self.assertLen(list(substitutes(4, 1, range(4)).candidates(0, 1, 9)), 3)


if __name__ == "__main__":
    absltest.main()
