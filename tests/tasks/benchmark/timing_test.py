"""Tests of jigclu.tasks.benchmark.timing."""

from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system import progress
from jigclu.tasks.benchmark import timing
from tests.terminal import progress_log

CPU = torch.device("cpu")


class TimingTest(absltest.TestCase):
    def test_actions_take_turns_and_the_first_round_does_not_count(self) -> None:
        done: list[str] = []
        # Seconds of a and b, in turn: 100 and 50 at first, then 1, 2, 9 and 4, 7, 5.
        taken = iter([100, 50, 1, 4, 2, 7, 9, 5])
        now = [0.0]

        def act(name: str) -> None:
            done.append(name)
            now[0] += next(taken)

        timed = timing.interleaved(
            {"a": lambda: act("a"), "b": lambda: act("b")}, 3, CPU, lambda: now[0]
        )
        self.assertEqual("".join(done), "abababab")
        self.assertEqual(timed, {"a": (2, 1, 9), "b": (5, 4, 7)})

    def test_every_row_is_named_before_it_is_measured(self) -> None:
        seen = []

        def act() -> None:
            progress.CONSOLE.tick()
            seen.append(log.getvalue().splitlines()[-1].rsplit(", ", 1)[0])

        with progress_log() as log:
            timing.first_calls({"a": act, "b": act}, CPU)
            timing.interleaved({"a": act, "b": act}, 1, CPU)
        self.assertEqual(
            seen,
            [
                *["row 1 of 2: a"] * 2,
                *["row 2 of 2: b"] * 2,
                *("round 1 of 2, row 1 of 2: a", "round 1 of 2, row 2 of 2: b"),
                *("round 2 of 2, row 1 of 2: a", "round 2 of 2, row 2 of 2: b"),
            ],
        )

    def test_a_gpu_is_given_several_calls_at_once(self) -> None:
        now = [0.0]

        def act() -> None:
            now[0] += 2

        with mock.patch.object(timing, "synchronize"):
            timed = timing.interleaved({"a": act}, 1, torch.device("cuda"), lambda: now[0])
        self.assertEqual((now[0], timed["a"].median), (2 * 2 * 10, 2))

    def test_peak_memory_is_what_an_action_needs_beyond_what_is_held(self) -> None:
        held = torch.ones(20_000_000)  # 80 MB.
        kept = []

        def act() -> None:
            kept.append(torch.ones(5_000_000))
            kept.append(torch.ones(10_000_000))
            kept.clear()

        peak = timing.peak_memory(act, CPU)
        if peak is None:
            self.skipTest("no /proc/self/clear_refs on this system")
        self.assertBetween(peak, 59e6, 75e6)
        del held

    def test_rate_of_a_product(self) -> None:
        with mock.patch.object(
            timing, "interleaved", return_value={"product": timing.Seconds(9, 0.5, 10)}
        ) as timed:
            rate = timing.matmul_rate(CPU, torch.bfloat16, 3)
        self.assertEqual(rate, 2 * 2048**3 / 0.5)
        product = timed.call_args.args[0]["product"]()
        self.assertEqual((product.shape, product.dtype), ((2048, 2048), torch.bfloat16))


if __name__ == "__main__":
    absltest.main()
