"""Tests of jigclu.tasks.benchmark.growth."""

from collections.abc import Callable
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.ops import losses
from jigclu.tasks.benchmark import growth, published
from jigclu.tasks.benchmark.growth import LossCost
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.benchmark.timing import Cost, Seconds
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine


class GrowthTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.machine = FakeMachine()
        self.called: list[tuple[str, int]] = []

    def fake_loss(
        self, name: str, seconds: Callable[[int], float], memory: int
    ) -> Callable[..., Tensor]:
        """Returns a loss that costs some seconds per number of patches, half for its gradient."""

        def loss(embeddings: Tensor, *_: object) -> Tensor:
            # [images, patches, channels] or [images * patches, channels].
            count = embeddings.shape[:-1].numel()
            self.called.append((name, count))
            self.machine.compute(seconds(count) / 2, memory * count)
            value = embeddings.square().sum()
            value.register_hook(lambda _: self.machine.compute(seconds(count) / 2))
            return value

        return loss

    def measure(
        self,
        patches: tuple[int, ...],
        longest: float,
        ours: Callable[[int], float],
        theirs: Callable[[int], float],
    ) -> list[LossCost]:
        with (
            mock.patch.object(losses, "clustering_loss", self.fake_loss("ours", ours, 10)),
            mock.patch.object(published, "clustering_loss", self.fake_loss("theirs", theirs, 70)),
        ):
            return growth.measure_loss(PRETRAINING, patches, longest, 3, self.machine.instruments)

    def test_both_losses_are_measured_with_their_gradients(self) -> None:
        found = self.measure((16, 32), 1e6, ours=lambda n: n / 16, theirs=lambda n: n / 8)
        self.assertEqual(
            found,
            [
                LossCost(
                    16,
                    ours=Cost(Seconds(1, 1, 1), 160),
                    published=Cost(Seconds(2, 2, 2), 1120),
                ),
                LossCost(
                    32,
                    ours=Cost(Seconds(2, 2, 2), 320),
                    published=Cost(Seconds(4, 4, 4), 2240),
                ),
            ],
        )

    def test_a_loss_expected_to_take_too_long_is_left_out(self) -> None:
        # 4 times the patches are expected to take 16 times as long: 16 s and 48 s.
        found = self.measure((16, 64), 31, ours=lambda n: n / 16, theirs=lambda n: 3)
        self.assertEqual([cost.published is None for cost in found], [False, True])
        self.assertEqual(found[1].ours, Cost(Seconds(4, 4, 4), 640))
        # Then ours takes 4 s, but is expected to take 64 s.
        self.called.clear()
        found = self.measure((16, 64, 256), 31, ours=lambda n: n / 16, theirs=lambda n: 3)
        self.assertEqual(found[2], LossCost(256, None, None))
        self.assertNotIn(("ours", 256), self.called)

    def test_the_size_before_predicts_the_time(self) -> None:
        # Not 64 s, which the first size predicts for the last one, but 16 s.
        found = self.measure((16, 32, 64), 31, ours=lambda n: n / 8, theirs=lambda n: n / 8)
        self.assertIsNotNone(found[2].ours)
        self.assertIsNotNone(found[2].published)

    def test_a_slow_loss_is_measured_once(self) -> None:
        # 16 s are expected for 64 patches.
        for longest, repetitions in ((32, 3), (31, 1)):
            self.called.clear()
            self.measure((16, 64), longest, ours=lambda n: n / 16, theirs=lambda n: n / 16)
            # Besides the repetitions, one round that does not count, and one for memory.
            self.assertEqual(self.called.count(("ours", 16)), 5)
            self.assertEqual(self.called.count(("ours", 64)), repetitions + 2)
            self.assertEqual(self.called.count(("theirs", 64)), repetitions + 2)

    def test_matrices_that_do_not_fit_are_left_out(self) -> None:
        # 8 float32 matrices, of all patches in the published loss, of 16 anchors in ours.
        self.machine.free = 4 * 8 * 32**2
        with mock.patch.object(losses, "ANCHORS_AT_ONCE", 16):
            found = self.measure((16, 32, 64, 128), 1e6, lambda n: n / 16, lambda n: n / 8)
        self.assertEqual([cost.published is None for cost in found], [False, False, True, True])
        self.assertEqual([cost.ours is None for cost in found], [False, False, False, True])

    def test_real_losses_run_and_agree(self) -> None:
        embeddings = growth._random_embeddings(PRETRAINING, 32, torch.device("cpu"))
        self.assertEqual(embeddings.shape, (8, 4, 128))
        torch.testing.assert_close(
            growth._our_loss(PRETRAINING)(embeddings),
            growth._published_loss(PRETRAINING)(embeddings),
        )
        cpu = device_instruments(torch.device("cpu"))
        ((count, ours, theirs),) = growth.measure_loss(PRETRAINING, (16,), 60.0, 1, cpu)
        self.assertEqual(count, 16)
        for cost in (ours, theirs):
            assert cost is not None
            self.assertGreater(cost.seconds.least, 0)


if __name__ == "__main__":
    absltest.main()
