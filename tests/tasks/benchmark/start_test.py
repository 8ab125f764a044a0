"""Tests of jigclu.tasks.benchmark.start."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.system.errors import UserError
from jigclu.tasks.benchmark import start
from jigclu.tasks.benchmark.instruments import Instruments, device_instruments
from jigclu.tasks.benchmark.start import StartTimes
from jigclu.tasks.pretrain import PretrainTask
from tests.small_tasks import PRETRAINING
from tests.tasks.benchmark.fakes import FakeMachine

CPU = torch.device("cpu")


class FakeContext:
    """Starts processes in 2 s, whose first step has ended 5 s later; they end 100 s after it."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> mock.Mock:
        return mock.Mock(start=lambda: self._machine.wait(2), join=lambda: self._machine.wait(100))

    def Pipe(self, duplex: bool) -> tuple[mock.Mock, mock.Mock]:
        return mock.Mock(recv=lambda: self._machine.wait(5)), mock.Mock()


class StartTest(absltest.TestCase):
    def test_the_second_compiled_start_finds_the_cache_of_the_first(self) -> None:
        seen = []

        def first_step(task: PretrainTask, instruments: Instruments) -> float:
            folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
            seen.append((task.compute.compile, os.listdir(folder)))
            if task.compute.compile:
                with open(os.path.join(folder, "code"), "w", encoding="utf-8"):
                    pass
            return [5.0, 80.0, 20.0][len(seen) - 1]

        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        with mock.patch.object(start, "_seconds_to_first_step", first_step):
            times = start.measure_start(PRETRAINING, FakeMachine().instruments)
        self.assertEqual(times, StartTimes(eager=5, empty_cache=80, warm_cache=20))
        self.assertEqual(seen, [(False, []), (True, []), (True, ["code"])])
        self.assertEqual(os.environ.get("TORCHINDUCTOR_CACHE_DIR"), before)

    def test_time_ends_with_the_first_step_not_with_the_process(self) -> None:
        machine = FakeMachine()
        with mock.patch.object(multiprocessing, "get_context", lambda _: FakeContext(machine)):
            seconds = start._seconds_to_first_step(PRETRAINING, machine.instruments)
        self.assertEqual(seconds, 2 + 5)

    def test_a_process_waits_for_its_first_step_before_it_reports(self) -> None:
        events = []
        with (
            mock.patch.object(start, "jigsaw_step", lambda *_: lambda: events.append("step")),
            mock.patch.object(start, "synchronize", lambda _: events.append("wait")),
        ):
            start._take_first_step(
                PRETRAINING, CPU, mock.Mock(send=lambda _: events.append("report"))
            )
        self.assertEqual(events, ["step", "wait", "report"])

    def test_a_real_process_takes_its_first_step(self) -> None:
        self.assertGreater(start._seconds_to_first_step(PRETRAINING, device_instruments(CPU)), 0)

    def test_a_process_that_ends_early_is_reported(self) -> None:
        # The step of an unknown device raises an exception.
        meta = FakeMachine("meta").instruments
        with self.assertRaisesRegex(UserError, "ended before its first step"):
            start._seconds_to_first_step(PRETRAINING, meta)


if __name__ == "__main__":
    absltest.main()
