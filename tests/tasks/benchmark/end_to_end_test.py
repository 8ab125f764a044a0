"""Tests of jigclu.tasks.benchmark.end_to_end."""

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.methods.jigsaw import StepInputs
from jigclu.tasks.benchmark import end_to_end
from jigclu.tasks.benchmark.timing import Seconds
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING

CPU = torch.device("cpu")


class EndToEndTest(absltest.TestCase):
    def test_time_begins_when_the_first_batch_that_counts_is_there(self) -> None:
        now = [0.0]

        def inputs() -> Iterator[tuple[int, float]]:
            for number in range(5):
                wait = 10.0 if number <= 3 else 2.0
                now[0] += wait
                yield number, wait

        def take(_: object) -> None:
            now[0] += 3.0

        with mock.patch.object(time, "perf_counter", lambda: now[0]):
            seconds, waited = end_to_end._timed(inputs(), take, 3, CPU)
        # Steps 3 and 4, and what step 4 waited.
        self.assertEqual((seconds, waited), (8.0, 2.0))

    def test_a_run_is_measured(self) -> None:
        table = end_to_end.measure_end_to_end(PretrainTask(**PRETRAINING), 2, 1, CPU)
        self.assertEqual(
            [row[0] for row in table.rows],
            ["files to parameters", "steps alone, on noise", "reading alone"],
        )
        for _, rate, _, _ in table.rows:
            self.assertGreater(rate, 0)
        self.assertBetween(table.rows[0][2], 0, 100)
        self.assertBetween(table.rows[0][3], 0, 100)

    def test_copies_are_compared_with_steps_without_them(self) -> None:
        task = PretrainTask(**PRETRAINING)
        taken: list[torch.Tensor] = []
        seconds = {
            "no copies": Seconds(1.0, 1.0, 1.0),
            "copied during the step before": Seconds(1.0, 1.0, 1.0),
            "copied before each step": Seconds(2.0, 1.0, 2.0),
        }

        def called(actions: dict[str, Any], *_: object) -> dict[str, Seconds]:
            for action in actions.values():
                action()
            return seconds

        def stepper(*_: object) -> Callable[[StepInputs], None]:
            return lambda inputs: taken.append(inputs.slots)

        with (
            mock.patch.object(end_to_end, "jigsaw_stepper", stepper),
            mock.patch.object(end_to_end, "interleaved", called),
        ):
            table = end_to_end.measure_copies(task, 1, CPU)
        self.assertEqual(
            table.rows,
            [
                ("no copies", 4.0, 0.0),
                ("copied during the step before", 4.0, 0.0),
                ("copied before each step", 2.0, 50.0),
            ],
        )
        # Whatever the way, a step gets the same patches.
        self.assertLen(taken, 3)
        for patches in taken[1:]:
            self.assertTrue(torch.equal(patches, taken[0]))


if __name__ == "__main__":
    absltest.main()
