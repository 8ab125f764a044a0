"""Pre-training without monitor, evaluation and checkpoints, to be timed from outside."""

from collections.abc import Iterator

import torch
from torch import Tensor

from jigclu.data.loader import Batch
from jigclu.models.encoder import Encoder
from jigclu.system.machine import PRECISIONS
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import time_batches


class BareRun:
    """A run of a task on one device, from random weights."""

    def __init__(self, task: PretrainTask, device: torch.device) -> None:
        """Applies the settings of the machine, and builds the network."""
        self._task = task
        self._device = device
        self._machine = task.choose_machine(None)
        self._machine.apply()
        self._step = task.training_step(device, self._machine)
        self._state = self._step.initial_state()

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return self._state.step

    def batches(self) -> Iterator[tuple[Batch, float]]:
        """Yields the batches of all steps, each with the seconds spent waiting for it."""
        return time_batches(self._task.batches(0, self._device, self._machine))

    def take_step(self, batch: Batch) -> dict[str, Tensor]:
        """Takes a step as in training; returns its metrics."""
        inputs = self._task.prepare(batch, self._state.step)
        self._state, metrics, _ = self._task.take_step(self._step, self._state, inputs)
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Returns the scores of all evaluators of the task."""
        encoder = self._step.network.encoder
        scores: dict[str, float] = {}
        assert isinstance(encoder, Encoder)
        for evaluator in self._task.evaluators:
            scores |= evaluator(encoder, PRECISIONS[self._machine.precision.value])
        return scores
