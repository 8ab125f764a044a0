"""Comparison of runs: their scores, time and bindings in one document."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jigclu.system.charts import Chart, Points, describe
from jigclu.system.device import launched_rank
from jigclu.system.documents import Charts, Document, Paragraph, Section, Table
from jigclu.system.errors import check, naming
from jigclu.system.files import expand_home
from jigclu.system.progress import CONSOLE
from jigclu.training import run_records
from jigclu.training.loop import RunResult
from jigclu.training.report import describe_hours, write_document
from jigclu.training.run_records import Run, is_share


@dataclass(frozen=True, kw_only=True)
class ReportTask:
    """Writes report.html and report.md about any number of runs to the workdir.

    Attributes:
      workdirs: of the runs, in the order of the table.
    """

    workdirs: tuple[str, ...]

    def __post_init__(self) -> None:
        unique = 0 < len(set(self.workdirs)) == len(self.workdirs)
        check(unique, "workdirs", self.workdirs, "one or more different folders")

    def check(self, workdir: Path) -> None:
        """Raises UserError for a folder that is not the workdir of a run."""
        del workdir
        self._runs()

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in one line."""
        return f"compares: {', '.join(self.workdirs)}, in {workdir / 'report.html'}"

    def run(self, workdir: Path, config: str) -> RunResult:
        """Writes the comparison; returns no scores."""
        del config
        if launched_rank() == 0:
            write_document(workdir, compare(self._runs()))
            CONSOLE.message(f"{len(self.workdirs)} runs are compared in {workdir}/report.html")
        return RunResult({}, None)

    def _runs(self) -> dict[str, Run]:
        """Returns the runs by the names of their folders, or if these are equal, by their paths."""
        paths = {name: Path(expand_home(name)) for name in self.workdirs}
        short = {path.name for path in paths.values()}
        with naming("workdirs"):
            return {
                path.name if len(short) == len(paths) else name: run_records.read(path)
                for name, path in paths.items()
            }


def compare(runs: dict[str, Run]) -> Document:
    """Returns a comparison of runs, by name."""
    scored = {name: run.scores[0] for name, run in runs.items() if run.scores}
    sections = [
        Section("Runs", [Table(_HEADER, [_row(name, run) for name, run in runs.items()])]),
        Section("Accuracy", _accuracy(runs, scored)),
        Section("All scores", _all_scores(runs)),
        Section("Bindings that differ", _differences(runs)),
        Section("Alarms", _alarms(runs)),
    ]
    return Document("Comparison of runs", f"{len(runs)} runs.", sections)


_HEADER = (
    *("run", "task", "score", "untrained", "last", "best", "steps", "images seen"),
    *("time", "device-hours", "alarms"),
)


def _row(name: str, run: Run) -> tuple[str, ...]:
    score = next(iter(run.scores), "")
    trained = run.trained(score)
    last, best = (trained[-1], max(trained)) if trained else (None, None)
    hours = run.hours()
    return (
        *(name, run.task, score),
        *(
            "" if value is None else describe(value, is_share(score))
            for value in (run.untrained(score), last, best)
        ),
        *(f"{run.lines[-1]['step']:,}" if run.lines else "", f"{run.images:,}"),
        *(describe_hours(hours), f"{hours * run.processes:.3g}", str(len(run.alarms))),
    )


def _accuracy(runs: dict[str, Run], scored: dict[str, str]) -> list[Charts | Paragraph]:
    """Returns charts of the first score of each run; levels of chance only if they agree."""
    if not scored:
        return [Paragraph("None of the runs has a score yet.")]
    scores = set(scored.values())
    title = scores.pop() if len(scores) == 1 else "first score of each run"
    chances = {runs[name].levels(score).get("chance") for name, score in scored.items()}
    chance = chances.pop() if len(chances) == 1 else None

    def chart(x_label: str, points: Callable[[Run, str], Points]) -> Chart:
        lines = {
            name if title == score else f"{name} ({score})": points(runs[name], score)
            for name, score in scored.items()
        }
        levels = {} if chance is None else {"chance": chance}
        return Chart(title, x_label, lines, levels, all(map(is_share, scored.values())))

    return [
        Charts(
            [
                chart("hours of work", Run.over_hours),
                chart("images seen", lambda run, score: run.points(score, "images")),
            ]
        )
    ]


def _all_scores(runs: dict[str, Run]) -> list[Table]:
    """Returns the last value of each score (row) of each run (column)."""
    names = list(dict.fromkeys(score for run in runs.values() for score in run.scores))

    def cell(run: Run, name: str) -> str:
        trained = run.trained(name)
        return describe(trained[-1], is_share(name)) if trained else ""

    rows = [(name, *(cell(run, name) for run in runs.values())) for name in names]
    return [Table(("score", *runs), rows)] if rows else []


def _differences(runs: dict[str, Run]) -> list[Table | Paragraph]:
    """Returns the bindings with different values in runs that bind them."""
    bound = {name: run.bindings for name, run in runs.items()}
    names = sorted(set().union(*bound.values()))
    rows = [
        (name, *(values.get(name, "not bound") for values in bound.values()))
        for name in names
        if len({values[name] for values in bound.values() if name in values}) > 1
    ]
    return [Table(("binding", *runs), rows) if rows else Paragraph("None.")]


def _alarms(runs: dict[str, Run]) -> list[Table]:
    rows = [(name, f"{step:,}", text) for name, run in runs.items() for step, text in run.alarms]
    return [Table(("run", "step", "alarm"), rows)] if rows else []
