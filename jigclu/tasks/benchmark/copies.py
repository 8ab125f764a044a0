"""How long steps wait for copies from host memory to the device."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from jigclu.data.loader import Batch
from jigclu.data.prefetch import prefetch_to_device
from jigclu.tasks.benchmark.instruments import Action, Instruments
from jigclu.tasks.benchmark.noise_steps import jigsaw_stepper, random_inputs
from jigclu.tasks.benchmark.timing import time_actions
from jigclu.tasks.pretrain import PretrainTask


class Copies(NamedTuple):
    """Median seconds of a step by where its patches are, and how large these are.

    on_device: no copies. ahead: copied during the step before, as in training.
    before: copied before each step.
    size: bytes copied per step.
    """

    on_device: float
    ahead: float
    before: float
    size: int


def measure_copies(task: PretrainTask, repetitions: int, instruments: Instruments) -> Copies:
    """Measures steps on noise, with and without copies of their patches.

    Args:
      task: whose step is taken; nothing is read.
      repetitions: >= 1.
      instruments: of the device.
    """
    device = instruments.device
    take_step, inputs = jigsaw_stepper(task, device), random_inputs(task, device)
    patches = inputs.crops.cpu().unflatten(0, (task.batch_size, -1))
    if task.choose_machine(None).pin_memory.value:
        patches = patches.pin_memory()
    batch = Batch(patches, {}, ())
    prefetched = prefetch_to_device(itertools.repeat(batch), device)

    def take_step_on(patches: Tensor) -> None:
        take_step(inputs._replace(crops=patches.flatten(0, 1)))

    actions: dict[str, Action] = {
        "on device": lambda: take_step(inputs),
        "copied ahead": lambda: take_step_on(next(prefetched).crops),
        "copied before": lambda: take_step_on(_copy(patches, device)),
    }
    seconds = time_actions(actions, repetitions, instruments)
    return Copies(
        on_device=seconds["on device"].median,
        ahead=seconds["copied ahead"].median,
        before=seconds["copied before"].median,
        size=patches.nbytes,
    )


def _copy(patches: Tensor, device: torch.device) -> Tensor:
    return patches.to(device)
