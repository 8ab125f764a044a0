"""Pre-training and its evaluations in one command: stages, each with its own gin file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jigclu.system.device import launched_rank
from jigclu.system.errors import check
from jigclu.system.files import sha256, write_file
from jigclu.tasks.stages import Load, Stage, check_stage, load_stage, run_stage
from jigclu.training import checkpoint
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor

# In a binding: the path of the last checkpoint of the first stage; the folder of the data.
_PRETRAINED, _DATA = "{pretrained}", "{data}"


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
        first = workdir / self.stages[0][0]
        for index, (name, _, _) in enumerate(self.stages):
            stage, pretrained = self._stage(index, workdir), None
            if self._needs_weights(index) and checkpoint.latest(first) is None:
                # Weights that do not exist yet cannot be checked; everything else can.
                pretrained = self._stage(0, workdir).task
            check_stage(name, stage, workdir / name, pretrained)

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
        inputs = {"weights": self._weights(index, workdir)}
        return run_stage(name, stage, folder, inputs, monitor.message)

    def _needs_weights(self, index: int) -> bool:
        return index > 0 and _PRETRAINED in str(self.stages[index][2])

    def _weights(self, index: int, workdir: Path) -> str | None:
        """Returns the SHA-256 of the pre-trained weights of a stage, or None if it uses none."""
        found = checkpoint.latest(workdir / self.stages[0][0])
        return sha256(found) if self._needs_weights(index) and found is not None else None

    def _stage(self, index: int, workdir: Path) -> Stage:
        name, file, bindings = self.stages[index]
        first = workdir / self.stages[0][0]
        # Before the first stage has run: where its checkpoint will be.
        pretrained = checkpoint.latest(first) or first / "checkpoints"
        values = {_PRETRAINED: str(pretrained), _DATA: self.data or _DATA}
        macros = {"DATA": self.data, "SIZE": self.size}
        shared = [f"{name}={value!r}" for name, value in macros.items() if value is not None]
        own = _fill(bindings, values)
        return load_stage(self.load, name, file, [*shared, *own], workdir / name)

    def _figure(self, stage: str, score: str) -> float | None:
        return next((v for name, key, v in self.published if (name, key) == (stage, score)), None)


def _fill(bindings: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Returns bindings with values in place of placeholders."""
    filled = list(bindings)
    for placeholder, value in values.items():
        filled = [text.replace(placeholder, value) for text in filled]
    return filled


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of our scores and the published ones."""
    lines = ["| stage | score | ours | published |", "|---|---|---|---|"]
    for row in rows:
        published = "" if row.published is None else f"{row.published:.4g}"
        lines.append(f"| {row.stage} | {row.score} | {row.ours:.4g} | {published} |")
    return "\n".join(lines)
