"""All checks of a training task, one after another."""

from collections.abc import Iterator
from pathlib import Path

from jigclu.tasks.doctor.finding import Finding
from jigclu.tasks.doctor.images import check_images, find_sources
from jigclu.tasks.doctor.machine import check_machine
from jigclu.tasks.doctor.steps import check_pretraining_steps, check_steps
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.task import TrainingTask


def examine(task: TrainingTask, workdir: Path) -> Iterator[Finding]:
    """Yields the findings of a task on the processes that run it; every rank must call it.

    Nothing is written but files that are removed again.

    Args:
      task: which has passed `check`.
      workdir: of the run to come.
    """
    with task.process(workdir, "") as process:
        yield from check_machine(task, process)
        for name, source in find_sources(task).items():
            yield check_images(name, source, task.loading.timeout, _tolerated(task, name))
        if isinstance(task, PretrainTask):
            yield from check_pretraining_steps(task, process)
    if not isinstance(task, PretrainTask):
        yield from check_steps(task)


def _tolerated(task: TrainingTask, name: str) -> float:
    """Returns the share of unreadable images with which a task still runs."""
    if isinstance(task, PretrainTask) and (
        name == "source" or all(getattr(item, "skip_unreadable", False) for item in task.evaluators)
    ):
        return task.loading.most_unreadable
    return 0.0
