"""Tests of jigclu.tasks.benchmark.timing."""

from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system import progress
from jigclu.tasks.benchmark import timing
from jigclu.tasks.benchmark.timing import Cost, Seconds
from tests.tasks.benchmark.fakes import FakeMachine
from tests.terminal import progress_log


class TimingTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.machine = FakeMachine()

    def test_a_call_is_timed_until_the_device_has_finished(self) -> None:
        def act() -> None:
            self.machine.wait(1)
            self.machine.compute(2)

        # Work queued before the call does not count.
        self.machine.compute(50)
        self.assertEqual(timing.time_call(act, self.machine.instruments), 3)

    def test_actions_take_turns_and_the_first_round_does_not_count(self) -> None:
        done: list[str] = []
        seconds = {"a": iter([100, 1, 2, 9, 11]), "b": iter([50, 4, 7, 5, 12])}

        def act(name: str) -> None:
            done.append(name)
            self.machine.compute(next(seconds[name]))

        actions = {"a": lambda: act("a"), "b": lambda: act("b")}
        times = timing.time_actions(actions, 3, self.machine.instruments)
        self.assertEqual("".join(done), "abababab")
        self.assertEqual(
            times,
            {"a": Seconds(median=2, least=1, most=9), "b": Seconds(median=5, least=4, most=7)},
        )

    def test_a_device_with_a_queue_gets_several_calls_at_once(self) -> None:
        machine = FakeMachine(calls_at_once=10)
        times = timing.time_actions({"a": machine.action(2)}, 1, machine.instruments)
        self.assertEqual((machine.now, times["a"].median), (2 * 2 * 10, 2))

    def test_costs_are_time_and_memory(self) -> None:
        actions = {
            "a": self.machine.action(100, 1, 2, 9, 1000, memory=300),
            "b": self.machine.action(50, 4, 7, 5, 1000, memory=200),
        }
        costs = timing.measure_costs(actions, 3, self.machine.instruments)
        self.assertEqual(
            costs, {"a": Cost(Seconds(2, 1, 9), 300), "b": Cost(Seconds(5, 4, 7), 200)}
        )

    def test_every_row_is_named_before_it_is_measured(self) -> None:
        seen = []

        def act() -> None:
            progress.CONSOLE.tick()
            seen.append(log.getvalue().splitlines()[-1].rsplit(", ", 1)[0])

        with progress_log() as log:
            timing.measure_costs({"a": act, "b": act}, 1, self.machine.instruments)
        self.assertEqual(
            seen,
            [
                *("round 1 of 2, row 1 of 2: a", "round 1 of 2, row 2 of 2: b"),
                *("round 2 of 2, row 1 of 2: a", "round 2 of 2, row 2 of 2: b"),
                *("row 1 of 2: a", "row 2 of 2: b"),
            ],
        )

    def test_rate_is_that_of_the_fastest_matrix_product(self) -> None:
        with mock.patch.object(
            timing, "time_actions", return_value={"product": Seconds(9, 0.5, 10)}
        ) as timed:
            rate = timing.matmul_rate(torch.bfloat16, 3, self.machine.instruments)
        # A multiplication and an addition per pair of values.
        self.assertEqual(rate, 2 * 2048**3 / 0.5)
        actions, repetitions, _ = timed.call_args.args
        product = actions["product"]()
        self.assertEqual((product.shape, product.dtype), ((2048, 2048), torch.bfloat16))
        self.assertEqual(repetitions, 3)


if __name__ == "__main__":
    absltest.main()
