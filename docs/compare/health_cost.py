"""Prints what the measures of a pre-training step cost, in CPU time of one thread.

OMP_NUM_THREADS=1 PYTHONPATH=. python docs/compare/health_cost.py gin/demo.gin [BINDING ...]
"""

import statistics
import sys
import time

import torch

from jigclu import config
from jigclu.tasks.benchmark.noise_steps import random_inputs
from jigclu.tasks.pretrain import PretrainTask

_ROUNDS = 8


def main(file: str, bindings: list[str]) -> None:
    """Times plain and measured steps in turns; the first round does not count."""
    task = config.load([file], bindings).task
    assert isinstance(task, PretrainTask)
    device, machine = torch.device("cpu"), task.choose_machine(None)
    machine.apply()
    step = task.training_step(device, machine)
    state, inputs = step.initial_state(), random_inputs(task, device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + _ROUNDS):
        for measured, taken in seconds.items():
            began = time.process_time()
            state, _, _ = step(state, inputs, 0.01, measured)
            taken.append(time.process_time() - began)
    plain, measured_step = (statistics.median(taken[1:]) for taken in seconds.values())
    extra, every = measured_step - plain, task.reporting.log_every
    print(
        f"{task.encoder}, batch of {task.batch_size}, {machine.precision.value}: a step takes "
        f"{plain:.3f} s, its measures {extra:.3f} s; once in {every} steps, these are "
        f"{extra / plain / every:.2%}"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
