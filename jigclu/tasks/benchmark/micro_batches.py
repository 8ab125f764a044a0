"""Time and memory of a step whose encoder processes the batch in micro-batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.benchmark.noise_steps import jigsaw_step
from jigclu.tasks.benchmark.timing import Cost, measure_costs
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.settings import with_settings


class MicroBatchCost(NamedTuple):
    """A measured step.

    size: images that the encoder processes at once; None for the whole batch.
    cost: None if the device ran out of memory.
    """

    precision: str
    size: int | None
    cost: Cost | None


def measure_micro_batches(
    task: PretrainTask,
    sizes: Sequence[int | None],
    precisions: Sequence[str],
    repetitions: int,
    instruments: Instruments,
) -> list[MicroBatchCost]:
    """Measures steps on noise at several micro-batch sizes and precisions.

    Args:
      task: whose step is taken.
      sizes: images that the encoder processes at once; None for the whole batch.
      precisions: of `machine.PRECISIONS`.
      repetitions: >= 1.
      instruments: of the device.
    """
    found = []
    for precision in precisions:
        for size in sizes:
            changed = with_settings(task, precision=precision, micro_batch_size=size)
            cost = _measure_step(changed, repetitions, instruments)
            found.append(MicroBatchCost(precision, size, cost))
    return found


def _measure_step(task: PretrainTask, repetitions: int, instruments: Instruments) -> Cost | None:
    try:
        action = jigsaw_step(task, instruments.device)
        return measure_costs({"step": action}, repetitions, instruments)["step"]
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()  # Does nothing without a GPU.
