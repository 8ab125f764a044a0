"""Pre-training and its evaluations in one command: stages, each with its own gin file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jigclu.system import signals
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError, check
from jigclu.system.files import sha256, write_file
from jigclu.training import checkpoint
from jigclu.training.encoder_task import EncoderTask, without_weights
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor

# In a binding: the path of the last checkpoint of the first stage, and the folder of the data.
PRETRAINED = "{pretrained}"
_DATA = "{data}"


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


class Row(NamedTuple):
    """A row of the table: a score of a stage, and its published value, if any."""

    stage: str
    score: str
    ours: float
    published: float | None


@dataclass(frozen=True, kw_only=True)
class ReproduceTask:
    """Runs stages one after another; finished ones are skipped, interrupted ones resume.

    Attributes:
      stages: name (and folder in the workdir), gin file, and bindings that override it. In the
        bindings of later stages, {pretrained} stands for the last checkpoint of the first one, and
        in those of every stage {data} for the folder of the data.
      data: folder of the data, DATA in every stage; None: as the stage's file binds it.
      size: side of an image in pixels, SIZE in every stage; None: likewise.
      published: stage, score and published value.
      load: reads gin files.
    """

    stages: Sequence[tuple[str, str, tuple[str, ...]]]
    data: str | None
    size: int | None
    published: Sequence[tuple[str, str, float]]
    load: Load

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.stages]
        unique = 0 < len(set(names)) == len(names)
        check(unique, "stages", names, "one or more, with different names")

    def check(self, workdir: Path) -> None:
        """Raises UserError for a mistake in any stage that can be found before pre-training."""
        first = self.stages[0][0]
        for index, (name, _, bindings) in enumerate(self.stages):
            stage = self._stage(index, workdir)
            with_weights = index > 0 and PRETRAINED in str(bindings)
            if with_weights and checkpoint.latest(workdir / first) is None:
                # Weights that do not exist yet cannot be checked; everything else can.
                task, pretrained = stage.task, self._stage(0, workdir).task
                if not (isinstance(task, EncoderTask) and isinstance(pretrained, EncoderTask)):
                    continue
                stage = stage._replace(task=without_weights(task, pretrained))
            try:
                stage.for_workdir(workdir / name).check(workdir / name)
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from error

    def plan(self, workdir: Path) -> str:
        """Returns the names of the stages, and the plan of the first one."""
        listed = ", ".join(f"{name} ({file})" for name, file, _ in self.stages)
        folder = workdir / self.stages[0][0]
        first = self._stage(0, workdir).for_workdir(folder).task.plan(folder)
        return f"stages: {listed}\n{first}"

    def run(self, workdir: Path, config: str) -> RunResult:
        """Runs the stages that are not finished, then writes and prints the table."""
        is_main = launched_rank() == 0
        rows: list[Row] = []
        with Monitor.of_one_step(workdir, is_main) as monitor:
            monitor.text("config", 0, f"```\n{config}\n```")
            for index, (name, _, _) in enumerate(self.stages):
                scores = self._run_stage(index, workdir, monitor)
                rows += [
                    Row(name, key, value, self._figure(name, key)) for key, value in scores.items()
                ]
            scores = {f"{row.stage}/{row.score}": row.ours for row in rows}
            published = {f"{stage}/{key}_published": value for stage, key, value in self.published}
            monitor.numbers(0, scores | published)
            monitor.text("results", 0, table(rows))
            monitor.message(table(rows))
        if is_main:
            text = f"# Results\n\n{table(rows)}\n"
            write_file(workdir / "results.md", text.encode())
        pretrained = checkpoint.latest(workdir / self.stages[0][0])
        return RunResult(scores, pretrained)

    def _run_stage(self, index: int, workdir: Path, monitor: Monitor) -> dict[str, float]:
        """Returns the scores of a stage, which runs unless it finished with the same settings."""
        name = self.stages[index][0]
        folder = workdir / name
        stage = self._stage(index, workdir).for_workdir(folder)
        about: dict[str, Any] = {"config": stage.resolved, "weights": self._weights(index, workdir)}
        path = folder / "stage.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**about}
        finished: dict[str, float] | None = earlier.pop("scores", None)
        if finished is not None and earlier == about:
            monitor.message(f"stage {name}: already finished")
            return finished
        if earlier["weights"] != about["weights"] and checkpoint.latest(folder) is not None:
            raise UserError(
                f"{folder} has a run that started from older weights of stage "
                f"{self.stages[0][0]}: remove it to run the stage again, or use another --workdir"
            )
        monitor.message(f"stage {name}")
        stage.check(folder)
        _note(path, about)
        try:
            result = stage.run(folder)
            if result.is_stopped:
                raise signals.Stopped
        except KeyboardInterrupt as stopped:
            raise signals.Stopped(f"the same command continues with stage {name}") from stopped
        _note(path, about | {"scores": result.scores})
        return result.scores

    def _weights(self, index: int, workdir: Path) -> str | None:
        """Returns the SHA-256 of the pre-trained weights of a stage, or None if it uses none."""
        found = checkpoint.latest(workdir / self.stages[0][0])
        needed = index > 0 and PRETRAINED in str(self.stages[index][2])
        return sha256(found) if needed and found is not None else None

    def _stage(self, index: int, workdir: Path) -> Stage:
        name, file, bindings = self.stages[index]
        first = workdir / self.stages[0][0]
        found = checkpoint.latest(first) or first / "checkpoints"
        values = {PRETRAINED: str(found), _DATA: self.data or _DATA}
        macros = {"DATA": self.data, "SIZE": self.size}
        shared = [f"{name}={value!r}" for name, value in macros.items() if value is not None]
        own = [_fill(text, values) for text in bindings]
        try:
            return self.load([file], [*shared, *own], workdir / name)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from error

    def _figure(self, stage: str, score: str) -> float | None:
        return next((v for name, key, v in self.published if (name, key) == (stage, score)), None)


def _fill(binding: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        binding = binding.replace(placeholder, value)
    return binding


def _note(path: Path, contents: Mapping[str, Any]) -> None:
    if launched_rank() == 0:
        write_file(path, json.dumps(contents, indent=1).encode())


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of our scores and the published ones."""
    lines = ["| stage | score | ours | published |", "|---|---|---|---|"]
    for row in rows:
        published = "" if row.published is None else f"{row.published:.4g}"
        lines.append(f"| {row.stage} | {row.score} | {row.ours:.4g} | {published} |")
    return "\n".join(lines)
