"""A machine whose clock and meters tests control, and a workload for tables."""

import itertools

import torch

from jigclu.tasks.benchmark.instruments import Action, Instruments
from jigclu.tasks.benchmark.workload import Workload

WORKLOAD = Workload(
    encoder="resnet50",
    batch_size=8,
    grid=2,
    patch_size=112,
    embedding_channels=128,
    learning_rate=0.03,
    steps_per_epoch=5,
    precision="bfloat16",
    compiled=True,
    workers=3,
    queued_batches=6,
)


class FakeMachine:
    """A device with a queue of work, and a clock that nothing else moves.

    now: seconds on the clock.
    free: bytes that can still be allocated.
    """

    def __init__(self, device: str = "cpu", calls_at_once: int = 1) -> None:
        self.now = 0.0
        self.free = 10**15
        self._device = torch.device(device)
        self._calls_at_once = calls_at_once
        self._queued = 0.0
        self._needed = 0

    @property
    def instruments(self) -> Instruments:
        """The clock and the meters of this machine."""
        return Instruments(
            device=self._device,
            clock=lambda: self.now,
            synchronize=self._synchronize,
            peak_memory=self._peak_memory,
            free_memory=lambda: self.free,
            calls_at_once=self._calls_at_once,
        )

    def wait(self, seconds: float) -> None:
        """Lets time pass on the host."""
        self.now += seconds

    def compute(self, seconds: float, memory: int = 0) -> None:
        """Queues work, which passes no time before the device is synchronized."""
        self._queued += seconds
        self._needed = max(self._needed, memory)

    def action(self, *seconds: float, memory: int = 0) -> Action:
        """Returns an action; the last value repeats if it is called more often."""
        calls = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        return lambda: self.compute(next(calls), memory)

    def _synchronize(self) -> None:
        self.now += self._queued
        self._queued = 0.0

    def _peak_memory(self, action: Action) -> int:
        self._needed = 0
        action()
        return self._needed
