"""Pre-training and all that it is judged by, in one go: stages, each from a gin file of its own."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jigclu.system import files
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError
from jigclu.tasks.export import ExportTask
from jigclu.tasks.knn import KnnTask
from jigclu.training import checkpoint
from jigclu.training.loop import TrainingTask
from jigclu.training.monitor import Monitor

# In a binding: the path of the last checkpoint of the first stage.
PRETRAINED = "{pretrained}"


class Task(Protocol):
    """What a gin file comes to: something that can be checked, planned and run."""

    def check(self, workdir: Path, config: str) -> None: ...

    def plan(self, workdir: Path) -> str: ...

    def run(self, workdir: Path, config: str) -> dict[str, float]:
        """Does it, and returns what was scored, by name."""


class Load(Protocol):
    """Returns the task of gin files and bindings, and its effective bindings, one a line."""

    def __call__(self, files: Sequence[str], bindings: Sequence[str]) -> tuple[Task, str]: ...


class Row(NamedTuple):
    """A line of the table: what a stage scored, and what was published of it, if anything."""

    stage: str
    score: str
    ours: float
    published: float | None


@dataclass(frozen=True, kw_only=True)
class ReproduceTask:
    """Runs stages one after another; those that are done are skipped, others go on.

    stages: name (and folder in the workdir), gin file, bindings over it. In the
      bindings of all but the first, {pretrained} is the last checkpoint of the first.
    published: stage, score, figure to compare with.
    load: of gin files; from `config`.
    """

    stages: Sequence[tuple[str, str, tuple[str, ...]]]
    published: Sequence[tuple[str, str, float]]
    load: Load

    def check(self, workdir: Path, config: str) -> None:
        """Finds mistakes in all stages, as far as they can be found before pre-training.

        Raises:
          UserError: of any stage.
        """
        del config
        names = [name for name, _, _ in self.stages]
        if not names or len(set(names)) < len(names):
            raise UserError(f"stages are {names}; expected one or more, of different names")
        for index, name in enumerate(names):
            with_weights = index > 0 and PRETRAINED in str(self.stages[index][2])
            task, config = self._stage(index, workdir)
            if with_weights and checkpoint.latest(workdir / names[0]) is None:
                # Weights that are still to be made cannot be looked into; all else can.
                if not isinstance(task, (TrainingTask, KnnTask, ExportTask)):
                    continue
                task = dataclasses.replace(task, init_from=None)
            try:
                task.check(workdir / name, config)
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from error

    def plan(self, workdir: Path) -> str:
        """Returns the stages and the plan of the first."""
        task, _ = self._stage(0, workdir)
        listed = ", ".join(f"{name} ({file})" for name, file, _ in self.stages)
        return f"stages: {listed}\n{task.plan(workdir / self.stages[0][0])}"

    def run(self, workdir: Path, config: str) -> dict[str, float]:
        """Runs what is not done yet, then writes and prints the table."""
        is_main = launched_rank() == 0
        rows: list[Row] = []
        with Monitor.of_one_step(workdir, is_main) as monitor:
            monitor.text("config", 0, f"```\n{config}\n```")
            for index, (name, _, _) in enumerate(self.stages):
                scores = self._run_stage(index, workdir, monitor)
                rows += [
                    Row(name, key, value, self._figure(name, key)) for key, value in scores.items()
                ]
            monitor.text("results", 0, table(rows))
            monitor.message(table(rows))
        if is_main:
            text = f"# Results\n\n{table(rows)}\n"
            files.write_file(workdir / "results.md", text.encode())
        return {f"{row.stage}/{row.score}": row.ours for row in rows}

    def _run_stage(self, index: int, workdir: Path, monitor: Monitor) -> dict[str, float]:
        """Returns the scores of a stage, which is run unless the same one was run before."""
        name = self.stages[index][0]
        task, config = self._stage(index, workdir)
        folder = workdir / name
        stage: dict[str, Any] = {"config": config, "weights": self._weights(index, workdir)}
        path = folder / "stage.json"
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**stage}
        scores: dict[str, float] | None = earlier.pop("scores", None)
        if scores is not None and earlier == stage:
            monitor.message(f"stage {name}: done before")
            return scores
        if earlier["weights"] != stage["weights"] and checkpoint.latest(folder) is not None:
            raise UserError(
                f"{folder} is of a run that began with other weights than those of stage "
                f"{self.stages[0][0]} now: remove it to do the stage again, or take another "
                "--workdir"
            )
        monitor.message(f"stage {name}")
        task.check(folder, config)
        _note(path, stage)
        scores = task.run(folder, config)
        _note(path, stage | {"scores": scores})
        return scores

    def _weights(self, index: int, workdir: Path) -> str | None:
        """Returns the SHA-256 of the weights that a stage begins with, if the first made them."""
        found = checkpoint.latest(workdir / self.stages[0][0])
        needed = index > 0 and PRETRAINED in str(self.stages[index][2])
        return files.sha256(found) if needed and found is not None else None

    def _stage(self, index: int, workdir: Path) -> tuple[Task, str]:
        name, file, bindings = self.stages[index]
        first = workdir / self.stages[0][0]
        found = checkpoint.latest(first) or first / "checkpoints"
        try:
            return self.load([file], [text.replace(PRETRAINED, str(found)) for text in bindings])
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from error

    def _figure(self, stage: str, score: str) -> float | None:
        return next((v for name, key, v in self.published if (name, key) == (stage, score)), None)


def _note(path: Path, contents: Mapping[str, Any]) -> None:
    if launched_rank() == 0:
        files.write_file(path, json.dumps(contents, indent=1).encode())


def table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of ours beside the published figures."""
    lines = ["| stage | score | ours | published |", "|---|---|---|---|"]
    for row in rows:
        published = "" if row.published is None else f"{row.published:.4g}"
        lines.append(f"| {row.stage} | {row.score} | {row.ours:.4g} | {published} |")
    return "\n".join(lines)
