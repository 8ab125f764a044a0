"""Prints what measures and online probe of a pre-training step cost, in CPU time of one thread.

OMP_NUM_THREADS=1 PYTHONPATH=. python docs/compare/health_cost.py gin/demo.gin [BINDING ...]
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jigclu import config
from jigclu.methods.method import StepInputs
from jigclu.tasks.benchmark.noise_steps import random_inputs
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.online_probe import Labels, OnlineProbe, RunningProbe

_ROUNDS = 8
_CLASSES = 100


def main(file: str, bindings: list[str]) -> None:
    """Times plain and measured steps in turns; the first round does not count."""
    task = config.load([file], bindings).task
    assert isinstance(task, PretrainTask)
    device, machine = torch.device("cpu"), task.choose_machine(None)
    machine.apply()
    step = task.training_step(device, machine)
    state, inputs = step.initial_state(), random_inputs(task, device)
    observe = _online_probe(task, inputs, device)
    # Whether the step is measured, and what observes it.
    kinds = {"plain": (False, None), "measured": (True, None), "probed": (False, observe)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(1 + _ROUNDS):
        for name, arguments in kinds.items():
            began = time.process_time()
            state, _, _ = step(state, inputs, 0.01, *arguments)
            seconds[name].append(time.process_time() - began)
    plain, measured, probed = (statistics.median(taken[1:]) for taken in seconds.values())
    every = task.reporting.log_every
    print(
        f"{task.encoder}, batch of {task.batch_size}, {machine.precision.value}: a step takes "
        f"{plain:.3f} s, its measures {measured - plain:.3f} s; once in {every} steps, these are "
        f"{(measured - plain) / plain / every:.2%}; an online probe of {_CLASSES} classes takes "
        f"{probed - plain:.4f} s, {probed / plain - 1:.2%}"
    )


def _online_probe(
    task: PretrainTask, inputs: StepInputs, device: torch.device
) -> Callable[[Any], dict[str, Tensor]]:
    """Returns a function that trains a probe on the outputs of steps, with random labels."""
    of_images = torch.randint(_CLASSES, (task.batch_size,))
    labels = Labels(of_images, _CLASSES, lambda _: itertools.repeat(list(range(task.batch_size))))
    settings = OnlineProbe(learning_rate=0.1, momentum=0.9)
    probe = RunningProbe(settings, labels, task.new_encoder().channels, 0, device)

    def observe(outputs: Any) -> dict[str, Tensor]:
        features, images = task.method.encoder_features(outputs, inputs.targets)
        return probe.train(0, features, images, len(features))

    return observe


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
