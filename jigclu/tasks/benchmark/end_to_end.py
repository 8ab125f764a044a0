"""Training end to end, from image files to updated parameters, and what it waits for."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jigclu.system import progress
from jigclu.tasks.benchmark.bare_run import BareRun
from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.benchmark.noise_steps import jigsaw_step
from jigclu.tasks.benchmark.timing import show_row, time_actions
from jigclu.tasks.benchmark.workload import describe, with_steps
from jigclu.tasks.pretrain import PretrainTask

_WARM_UP = 3  # Steps that do not count, besides those whose batches are read meanwhile.


class RunTime(NamedTuple):
    """Seconds of all steps that count, and of those the seconds that the host waited for data."""

    seconds: float
    waited: float


class EndToEnd(NamedTuple):
    """A run, the same run without its steps, and its step without reading.

    steps, warm_up: steps that count, after those that do not.
    step: median seconds of one step on noise.
    """

    steps: int
    warm_up: int
    training: RunTime
    reading: RunTime
    step: float


def measure_end_to_end(
    task: PretrainTask, steps: int, repetitions: int, instruments: Instruments
) -> EndToEnd:
    """Measures a run, reading only, and the step only.

    Args:
      task: to run.
      steps: of the run that count, >= 1.
      repetitions: of the step on noise, >= 1.
      instruments: of the device.
    """
    device = instruments.device
    # The first step compiles. Meanwhile the workers fill their queues, whose batches are free.
    warm_up = _WARM_UP + describe(task).queued_batches
    # The clock stops when the batch after the last step arrives.
    task = with_steps(task, warm_up + steps + 1)
    with show_row(1, 3, "files to parameters"):
        run = BareRun(task, device)
        training = _time_run(run.batches(), run.take_step, warm_up, steps, instruments)
    with show_row(2, 3, "reading only"):
        batches = BareRun(task, device).batches()
        reading = _time_run(batches, lambda _: None, warm_up, steps, instruments)
    with show_row(3, 3, "steps only, on noise"):
        step = time_actions({"step": jigsaw_step(task, device)}, repetitions, instruments)["step"]
    return EndToEnd(steps, warm_up, training, reading, step.median)


def _time_run(
    inputs: Iterator[tuple[Any, float]],
    take_step: Callable[[Any], object],
    warm_up: int,
    steps: int,
    instruments: Instruments,
) -> RunTime:
    """Times the steps after the warm-up, from the arrival of one batch to that of another.

    Each step thus counts with the wait for the batch after it. The inputs are those of one
    step more, which does not count.
    """
    arrivals, waited = [], 0.0
    batches = progress.track(inputs, "steps", warm_up + steps + 1)
    for number, (batch, wait) in enumerate(batches):
        if number > warm_up:
            waited += wait
        if number in (warm_up, warm_up + steps):
            instruments.synchronize()
            arrivals.append(instruments.clock())
        take_step(batch)
    began, ended = arrivals
    return RunTime(ended - began, waited)
