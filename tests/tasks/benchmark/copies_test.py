"""Tests of jigclu.tasks.benchmark.copies."""

from collections.abc import Iterable, Iterator
from unittest import mock

import torch
from absl.testing import absltest
from torch import Tensor

from jigclu.data.loader import Batch
from jigclu.methods.method import StepInputs
from jigclu.tasks.benchmark import copies
from jigclu.tasks.benchmark.copies import Copies
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine


class CopiesTest(absltest.TestCase):
    def test_copies_are_timed_by_when_they_are_made(self) -> None:
        machine = FakeMachine()
        seen: list[Tensor] = []
        # Of the first round, which does not count, and of the next.
        step_seconds = iter([900.0] * 3 + [10.0] * 3)

        def take_step(inputs: StepInputs) -> None:
            seen.append(inputs.crops)
            machine.compute(next(step_seconds))

        def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
            for batch in batches:
                machine.compute(1)
                yield batch

        def copy(values: Tensor, device: torch.device) -> Tensor:
            machine.compute(4)
            return values

        with (
            mock.patch.object(copies, "jigsaw_stepper", lambda *_: take_step),
            mock.patch.object(copies, "prefetch_to_device", prefetch),
            mock.patch.object(copies, "_copy", copy),
        ):
            found = copies.measure_copies(PRETRAINING, 1, machine.instruments)
        # 4 images, each of 4 patches of 3 x 16 x 16 bytes.
        size = 4 * 4 * 3 * 16 * 16
        self.assertEqual(found, Copies(on_device=10, ahead=11, before=14, size=size))
        # All steps get the same patches.
        self.assertLen(seen, 6)
        for patches in seen[1:]:
            self.assertTrue(torch.equal(patches, seen[0]))

    def test_a_copy_is_on_the_device(self) -> None:
        self.assertEqual(copies._copy(torch.ones(2), torch.device("meta")).device.type, "meta")


if __name__ == "__main__":
    absltest.main()
