"""Compared methods, evaluations of their weights, and the conditions that trainings share."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jigclu.system.errors import UserError, check
from jigclu.tasks.stages import Task
from jigclu.training.encoder_task import EncoderTask
from jigclu.training.task import TrainingTask

_CONDITIONS: dict[str, Callable[[TrainingTask], object]] = {
    "encoder": lambda task: task.encoder,
    "small_stem": lambda task: task.small_stem,
    "compute.device": lambda task: task.compute.device,
    "compute.precision": lambda task: task.compute.precision,
    "compute.compile": lambda task: task.compute.compile,
    "number of training images": lambda task: len(task.training_source),
}


class Method(NamedTuple):
    """A compared method.

    name: and folder.
    file: gin file of its training.
    bindings: over it.
    candidates: further bindings of each trial.
    """

    name: str
    file: str
    bindings: tuple[str, ...]
    candidates: Sequence[tuple[str, ...]]

    @property
    def trial_candidates(self) -> Sequence[tuple[str, ...]]:
        """The candidates of which the best one is chosen; none if there is only one."""
        return self.candidates if len(self.candidates) > 1 else ()


class Scoring(NamedTuple):
    """An evaluation of weights.

    name: and folder.
    file: gin file.
    task: of the file, such as "linear".
    data: folder, DATA of the file; None: as the file binds it.
    bindings: over it, without those of the weights.
    """

    name: str
    file: str
    task: str
    data: str | None
    bindings: tuple[str, ...]


def check_names(setting: str, names: Sequence[str]) -> None:
    """Raises UserError unless names are different, and folders can have them."""
    plain = all(re.fullmatch(r"\w[\w.-]*", name) for name in names)
    rule = "names of letters, digits, '_', '-' and '.', which begin with a letter, a digit or '_'"
    check(plain, setting, names, rule)
    check(len(set(names)) == len(names), setting, names, "names that differ")


def training_task(name: str, task: Task) -> TrainingTask:
    """Returns the task of a method; raises UserError if it does not train."""
    if not isinstance(task, TrainingTask):
        raise UserError(f"{name} does not train: use the gin file of a training")
    return task


def check_conditions(tasks: Mapping[str, Task]) -> None:
    """Checks that tasks train the same encoder on as many images in the same arithmetic.

    Args:
      tasks: by names for messages. In a dry run, those whose data would have to be downloaded are
        left out of the check.

    Raises:
      UserError: two tasks differ, or one does not train.
    """
    trainings = {
        name: training_task(name, task)
        for name, task in tasks.items()
        if isinstance(task, EncoderTask)
    }
    for condition, read in _CONDITIONS.items():
        found: dict[object, str] = {}  # Values, each with the first task that has it.
        for name, task in trainings.items():
            found.setdefault(read(task), name)
        if len(found) > 1:
            values = " and ".join(f"{value!r} ({name})" for value, name in found.items())
            raise UserError(f"{condition} must be the same for all methods, but is {values}")
