"""Recorded draws of every stream: a change would make resumed runs differ from unbroken ones."""

import torch
from absl.testing import absltest

from jigclu.system import seeds

SEED, STEP, EPOCH, IMAGE = 3, 7, 7, 5
# Permutations drawn with these.
RECORDED = {
    "patch_order": [7, 10, 6, 2, 5, 9, 0, 1, 11, 8, 3, 4],
    "augmentation": [11, 6, 10, 7, 4, 0, 9, 1, 8, 2, 3, 5],
    "image_order": [1, 11, 5, 10, 6, 4, 3, 2, 8, 7, 0, 9],
    "balanced_subset": [11, 8, 4, 5, 9, 0, 2, 6, 10, 7, 1, 3],
    "held_out": [10, 0, 1, 9, 7, 2, 5, 6, 3, 8, 4, 11],
}


class SeedsTest(absltest.TestCase):
    def test_draws_stay_as_recorded(self) -> None:
        drawn = {
            name: torch.randperm(12, generator=generator).tolist()
            for name, generator in {
                "patch_order": seeds.patch_order(SEED, STEP),
                "augmentation": seeds.augmentation(SEED, STEP),
                "image_order": seeds.image_order(SEED, EPOCH),
                "balanced_subset": seeds.balanced_subset(SEED),
                "held_out": seeds.held_out(SEED),
            }.items()
        }
        self.assertEqual(drawn, RECORDED)

    def test_crops_of_an_image_stay_as_recorded(self) -> None:
        generator = seeds.image_crops(SEED, EPOCH, IMAGE)
        drawn = generator.integers(1 << 30, size=4).tolist()
        self.assertEqual(drawn, [256666389, 230957855, 996512342, 60469235])
        self.assertEqual(generator.random(), 0.06595971814141777)

    def test_initial_weights_are_those_of_the_seed(self) -> None:
        with seeds.initial_weights(SEED):
            drawn = torch.randn(3)
        expected = torch.randn(3, generator=torch.Generator().manual_seed(SEED))
        self.assertTrue(torch.equal(drawn, expected))
        recorded = torch.tensor([0.8032760620117188, 0.17483338713645935, 0.08897809684276581])
        self.assertTrue(torch.equal(drawn, recorded))

    def test_initial_weights_leave_the_global_generator_as_it_was(self) -> None:
        before = torch.get_rng_state()
        with seeds.initial_weights(SEED):
            torch.randn(3)
        self.assertTrue(torch.equal(torch.get_rng_state(), before))

    def test_mix_seed_gives_every_pair_its_own_seed(self) -> None:
        mixed = {seeds.mix_seed(seed, number) for seed in range(50) for number in range(200)}
        self.assertLen(mixed, 50 * 200)


if __name__ == "__main__":
    absltest.main()
