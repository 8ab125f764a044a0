"""Stages: gin files that a task runs one after another, each once, in a workdir of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jigclu.system import signals
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError
from jigclu.system.files import read_json, write_file
from jigclu.training import checkpoint
from jigclu.training.encoder_task import EncoderTask, without_weights
from jigclu.training.loop import RunResult


class Task(Protocol):
    """A task of a gin file: it can be checked, planned and run."""

    def check(self, workdir: Path) -> None:
        """Raises UserError for mistakes that can be found before anything is written."""

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines."""

    def run(self, workdir: Path, config: str) -> RunResult:
        """Runs the task; config has all effective bindings, one per line."""


class Stage(Protocol):
    """Configuration of a stage; see `config.Configuration`."""

    @property
    def task(self) -> Task:
        """The task of the stage."""

    @property
    def resolved(self) -> str:
        """All effective bindings, one per line."""

    def for_workdir(self, workdir: Path) -> "Stage":
        """Returns the stage with the encoder of its weights in place of "auto"."""

    def check(self, workdir: Path) -> None:
        """Checks the task; errors name the binding."""

    def run(self, workdir: Path) -> RunResult:
        """Writes the configuration to the workdir, then runs the task."""

    def _replace(self, *, task: Task) -> "Stage":
        """Returns the configuration with another task."""


class Load(Protocol):
    """Reads gin files, then bindings that override them, for a run in a workdir."""

    def __call__(
        self, files: Sequence[str], bindings: Sequence[str], workdir: Path | None
    ) -> Stage: ...


def load_with(load: Load, first: Sequence[str]) -> Load:
    """Returns a function that reads gin files with further bindings, which all others override."""

    def loads(files: Sequence[str], bindings: Sequence[str], workdir: Path | None) -> Stage:
        return load(files, [*first, *bindings], workdir)

    return loads


def load_stage(
    load: Load, name: str, file: str, bindings: Sequence[str], folder: Path | None
) -> Stage:
    """Reads the gin file of a stage, and bindings over it; errors name the stage."""
    try:
        return load([file], bindings, folder)
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error


def check_stage(name: str, stage: Stage, folder: Path, pretrained: Task | None = None) -> None:
    """Checks a stage; errors name it.

    Args:
      name: of the stage.
      stage: to check.
      folder: its workdir.
      pretrained: task that has yet to train the weights of the stage, which cannot be checked
        then; None if the stage needs none, or they exist.
    """
    if pretrained is not None:
        task = stage.task
        if not (isinstance(task, EncoderTask) and isinstance(pretrained, EncoderTask)):
            return
        stage = stage._replace(task=without_weights(task, pretrained))
    try:
        stage.for_workdir(folder).check(folder)
    except UserError as error:
        raise UserError(f"stage {name}: {error}") from error


def run_stage(
    name: str,
    stage: Stage,
    folder: Path,
    inputs: Mapping[str, Any],
    message: Callable[[str], None],
) -> dict[str, float]:
    """Returns the scores of a stage, which runs unless it finished with the same settings.

    Args:
      name: of the stage, for messages.
      stage: with the encoder of its weights.
      folder: its workdir, in which an interrupted stage resumes.
      inputs: JSON values beside the bindings on which the scores depend.
      message: shows a line.

    Raises:
      UserError: the folder has a checkpoint of a run with other inputs.
    """
    about = {"config": stage.resolved, **inputs}
    record = _read_record(folder)
    finished: dict[str, float] | None = record.pop("scores", None)
    if finished is not None and record == about:
        message(f"stage {name}: already finished")
        return finished
    changed = [key for key, value in inputs.items() if record.get(key, value) != value]
    if changed and checkpoint.latest(folder) is not None:
        raise UserError(
            f"{folder} has a run with {changed[0]} {record[changed[0]]}, not {inputs[changed[0]]}: "
            f"use these again to keep it, remove it to run stage {name} again, or use another "
            "--workdir"
        )
    message(f"stage {name}")
    stage.check(folder)
    _write_record(folder, about)
    try:
        result = stage.run(folder)
        if result.is_stopped:
            raise signals.Stopped
    except KeyboardInterrupt as stopped:
        raise signals.Stopped(f"the same command continues with stage {name}") from stopped
    return record_scores(folder, result.scores)


def record_scores(folder: Path, scores: dict[str, float]) -> dict[str, float]:
    """Records that the stage of a folder is finished, with its scores, and returns these."""
    _write_record(folder, _read_record(folder) | {"scores": scores})
    return scores


def _read_record(folder: Path) -> dict[str, Any]:
    """Returns the inputs, and if it is finished the scores, of the stage that ran in a folder."""
    found: dict[str, Any] = read_json(_record(folder), {})
    return found


def _record(folder: Path) -> Path:
    return folder / "stage.json"


def _write_record(folder: Path, contents: Mapping[str, Any]) -> None:
    if launched_rank() == 0:
        write_file(_record(folder), json.dumps(contents, indent=1).encode())
