"""Pre-training for a given time, with the kNN accuracy before and after."""

from typing import NamedTuple

from jigclu.tasks.benchmark.bare_run import BareRun
from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.pretrain import PretrainTask


class ShortTraining(NamedTuple):
    """Outcome of a run of limited time.

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
    """Trains until the time is over, or the run is complete.

    Args:
      task: with a `KnnEvaluator`.
      seconds: > 0; the step during which they end is the last.
      instruments: of the device.
    """
    run = BareRun(task, instruments.device)
    before = run.evaluate()
    began, waited = instruments.clock(), 0.0
    for batch, wait in run.batches():
        metrics = run.take_step(batch)
        waited += wait
        if instruments.clock() - began >= seconds:
            break
    instruments.synchronize()
    taken = instruments.clock() - began
    after = run.evaluate()
    return ShortTraining(
        steps=run.steps,
        seconds=taken,
        waited=waited,
        loss=metrics["loss"].item(),
        accuracy_before=before["knn_accuracy"],
        accuracy_after=after["knn_accuracy"],
        chance=after["knn_accuracy_chance"],
    )
