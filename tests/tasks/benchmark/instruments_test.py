"""Tests of jigclu.tasks.benchmark.instruments."""

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest

from jigclu.tasks.benchmark import instruments

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class FakeAllocator:
    """The allocator of a GPU, of which 100 bytes are held and 900 once were."""

    def __init__(self) -> None:
        self.held, self.most = 100, 900
        self.synchronized = 0

    def patch(self) -> AbstractContextManager[Any]:
        return mock.patch.multiple(
            torch.cuda,
            synchronize=self._synchronize,
            reset_peak_memory_stats=self._reset,
            memory_allocated=lambda device: self.held,
            max_memory_allocated=lambda device: self.most,
            mem_get_info=lambda device: (7_000, 80_000),
        )

    def allocate(self, count: int) -> None:
        self.held += count
        self.most = max(self.most, self.held)

    def _synchronize(self, device: torch.device) -> None:
        assert device == GPU
        self.synchronized += 1

    def _reset(self, device: torch.device) -> None:
        self.most = self.held


class InstrumentsTest(absltest.TestCase):
    def test_peak_memory_of_a_process_is_what_it_needs_beyond_what_it_holds(self) -> None:
        held = torch.ones(20_000_000)  # 80 MB.
        kept = []

        def act() -> None:
            kept.append(torch.ones(5_000_000))
            kept.append(torch.ones(10_000_000))
            kept.clear()

        peak = instruments.device_instruments(CPU).peak_memory(act)
        if peak is None:
            self.skipTest("no /proc/self/clear_refs on this system")
        self.assertBetween(peak, 59e6, 75e6)
        del held

    def test_peak_memory_is_unknown_without_proc(self) -> None:
        with mock.patch.object(Path, "exists", return_value=False):
            self.assertIsNone(instruments.peak_memory(lambda: None, CPU))

    def test_gpu_has_meters_of_its_allocator_and_a_queue(self) -> None:
        allocator = FakeAllocator()

        def act() -> None:
            allocator.allocate(200)
            allocator.allocate(-150)

        gpu = instruments.device_instruments(GPU)
        with allocator.patch():
            self.assertEqual(gpu.peak_memory(act), 200)
            self.assertEqual(gpu.free_memory(), 7_000)
            before = allocator.synchronized
            gpu.synchronize()
            self.assertEqual(allocator.synchronized, before + 1)
        self.assertEqual(gpu.calls_at_once, 10)
        self.assertIs(gpu.clock, time.perf_counter)

    def test_cpu_has_no_queue(self) -> None:
        allocator = FakeAllocator()
        cpu = instruments.device_instruments(CPU)
        with allocator.patch():
            cpu.synchronize()
        self.assertEqual(allocator.synchronized, 0)
        self.assertEqual(cpu.calls_at_once, 1)
        self.assertIs(cpu.clock, time.perf_counter)

    def test_processor_time_excludes_waiting(self) -> None:
        self.assertIs(instruments.processor_instruments().clock, time.process_time)

    def test_free_memory_of_the_system_is_converted_to_bytes(self) -> None:
        meminfo = "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   2 kB\n"
        with mock.patch.object(Path, "read_text", return_value=meminfo):
            self.assertEqual(instruments.free_memory(CPU), 2048)
        with mock.patch.object(Path, "exists", return_value=False):
            self.assertEqual(instruments.free_memory(CPU), 4 * 1024**3)


if __name__ == "__main__":
    absltest.main()
