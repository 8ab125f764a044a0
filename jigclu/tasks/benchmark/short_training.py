"""Pre-training for a given time, with the kNN accuracy before and after."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.pretrain import PretrainTask


class ShortTraining(NamedTuple):
    """What a run did in the given time.

    seconds: from the request for the first batch to the end of the last step.
    waited: seconds of these that the host waited for data.
    loss: of the last step.
    accuracy_before, accuracy_after, chance: of kNN classification, in [0, 1].
    """

    steps: int
    seconds: float
    waited: float
    loss: float
    accuracy_before: float
    accuracy_after: float
    chance: float


def measure_training(task: PretrainTask, seconds: float, instruments: Instruments) -> ShortTraining:
    """Trains in a temporary folder until the time is over, or the run is complete.

    Args:
      task: with an evaluation.
      seconds: > 0; the step during which they end is the last.
      instruments: of the device.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = task.start(Path(folder), "", instruments.device)
        before = run.score()
        began, waited = instruments.clock(), 0.0
        for inputs, wait in run.inputs():
            metrics = run.take_step(inputs)
            waited += wait
            if instruments.clock() - began >= seconds:
                break
        instruments.synchronize()
        taken = instruments.clock() - began
        after = run.score()
    return ShortTraining(
        steps=run.state.step,
        seconds=taken,
        waited=waited,
        loss=metrics["loss"].item(),
        accuracy_before=before["knn_accuracy"],
        accuracy_after=after["knn_accuracy"],
        chance=after["knn_accuracy_chance"],
    )
