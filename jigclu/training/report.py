"""The report of a run: report.html and report.md in its workdir."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple

from absl import logging

from jigclu.system import shell, signals
from jigclu.system.charts import Chart, describe
from jigclu.system.document_html import to_html
from jigclu.system.document_markdown import to_markdown
from jigclu.system.documents import (
    Block,
    Charts,
    Code,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)
from jigclu.system.errors import UserError
from jigclu.system.files import write_file
from jigclu.training import run_records
from jigclu.training.loop import RunResult
from jigclu.training.published import PUBLISHED, SOURCE
from jigclu.training.records import PICTURES
from jigclu.training.report_health import health_section, metric_charts
from jigclu.training.run_records import Run, is_share

_HTML, _MARKDOWN = "report.html", "report.md"
_STOPPED = "Stopped by a signal; the same command continues."
_MOST_PICTURES = 12
_MOST_FILES = 30
_CONFUSION = "rows are true, columns predicted; the darker, the larger the share."
_CAPTIONS = {
    "inputs": "The last training images that were drawn, as the network sees them.",
    "predictions": "Photographs, their patches, and what the network makes of each patch.",
    "predictions/": "An image of val, its true classes, and the predicted ones, by color.",
    "location_confusion": f"Which places are mistaken for which: {_CONFUSION}",
    "confusion": f"Which classes are mistaken for which: {_CONFUSION}",
    "knn_confusion": f"Which classes nearest neighbors mistake for which: {_CONFUSION}",
    "probe_confusion": f"Which classes the linear probe mistakes for which: {_CONFUSION}",
    "knn_neighbors": "Images, each followed by its nearest neighbors among the training images.",
}


class Change(NamedTuple):
    """A binding that differs from the shipped gin files.

    shipped: value in the shipped files; None if they do not bind it.
    value: of the run.
    """

    name: str
    shipped: str | None
    value: str


class About(NamedTuple):
    """What a command runs, beside the records in its workdir.

    plan: several lines.
    config: all effective bindings, one per line.
    file: shipped gin file that the run follows, such as gin/demo.gin, or None.
    changes: bindings that differ from that file.
    """

    plan: str
    config: str
    file: str | None
    changes: Sequence[Change]


def run_and_report(run: Callable[[], RunResult], workdir: Path, about: About) -> RunResult:
    """Runs a task, and writes its report also if it is stopped or fails.

    Args:
      run: runs the task.
      workdir: of the run.
      about: what runs.

    Raises:
      UserError, Stopped: as the task does.
    """
    try:
        result = run()
        outcome = _STOPPED if result.is_stopped else "Finished."
        return result
    except BaseException as error:
        # Callers of Python functions in C++ replace Stopped by other errors.
        is_stopped = isinstance(error, KeyboardInterrupt) or signals.requested()
        outcome = _STOPPED if is_stopped else f"Failed: {str(error) or repr(error)}."
        raise
    finally:
        # If this rank fails, torchrun also signals it to stop.
        with signals.deferred():
            write_report(workdir, about, outcome)


def write_report(workdir: Path, about: About, outcome: str) -> None:
    """Writes the report of a run; one that cannot be written is only a warning."""
    try:
        write_document(workdir, build(run_records.read(workdir), about, outcome, time.time()))
    except (OSError, UserError) as error:
        logging.warning("the report cannot be written: %s", error)


def write_document(workdir: Path, document: Document) -> None:
    """Writes a document as report.html and report.md; raises UserError if that is impossible."""
    write_file(workdir / _HTML, to_html(document).encode("utf-8", "backslashreplace"))
    write_file(workdir / _MARKDOWN, to_markdown(document).encode("utf-8", "backslashreplace"))


def build(run: Run, about: About, outcome: str, now: float) -> Document:
    """Returns the report of a run.

    Args:
      run: its records.
      about: what ran.
      outcome: a sentence.
      now: end of the run, in seconds since 1970.
    """
    sections = [
        Section("Scores", _scores(run, about)),
        Section("Curves", _charts(metric_charts(run, ("loss", "accuracy")))),
        health_section(run),
        Section("Pictures", list(_pictures(run.workdir))),
        Section("What ran", _what_ran(run, about)),
        Section("Differences from the shipped file", _changes(about)),
        Section("Time", [_time(run, now)]),
        Section("Files", [_files(run.workdir)]),
        Section("Optimization and speed", _charts(metric_charts(run, ("optim", "speed"))), True),
        Section("All bindings", [Code(about.config)] if about.config else [], True),
    ]
    name = run.workdir.absolute().name
    return Document(f"{name}: {run.task}", f"{outcome} {_headline(run)}".strip(), sections)


def _headline(run: Run) -> str:
    """Returns sentences about the first score and alarms, if there are any."""
    sentences = []
    for name in run.scores[:1]:
        known = {"": _last(run, name), "untrained ": run.untrained(name)}
        known |= {f"{kind} ": value for kind, value in run.levels(name).items()}
        share = is_share(name)
        values = [f"{kind}{describe(v, share)}" for kind, v in known.items() if v is not None]
        sentences.append(f"{name} {', '.join(values)}.")
    if run.alarms:
        sentences.append(f"Alarms: {len(run.alarms)}; see Health.")
    return " ".join(sentences)


def _scores(run: Run, about: About) -> list[Block]:
    shipped = PUBLISHED.get(about.file or "", {})
    published = {name: run.last(f"{name}_published") or shipped.get(name) for name in run.scores}

    def cell(name: str, value: float | None) -> str:
        return "" if value is None else describe(value, is_share(name))

    columns = {
        "score": list(run.scores),
        "this run": [cell(name, _last(run, name)) for name in run.scores],
        "untrained": [cell(name, run.untrained(name)) for name in run.scores],
        "chance": [cell(name, run.levels(name).get("chance")) for name in run.scores],
        "published": [cell(name, published[name]) for name in run.scores],
    }
    shown = {header: cells for header, cells in columns.items() if any(cells)}
    if not shown:
        return []
    blocks: list[Block] = [Table(list(shown), list(zip(*shown.values(), strict=True)))]
    if "published" in shown:
        blocks.append(Paragraph(_published_note(about)))
    if not run.is_from_scratch:
        blocks.append(
            Paragraph(
                f"For an untrained encoder, run the same command with {run.task}.init_from=None, "
                f"{run.task}.encoder bound to the name of the network, and another --workdir; "
                "gin/report.gin compares the two."
            )
        )
    return blocks


def _last(run: Run, name: str) -> float | None:
    """Returns the last value of a score, or None before its first evaluation after training."""
    return next(reversed(run.trained(name)), None)


def _published_note(about: About) -> str:
    if about.file not in PUBLISHED:
        return "Published: as bound in reproduce.published. Compare only scores of the same data."
    changed = f", of which this run changes {len(about.changes)}" if about.changes else ""
    return (
        f"Published: {SOURCE}. Compare only scores of the same data and the other bindings of "
        f"{about.file}{changed}."
    )


def _pictures(workdir: Path) -> Iterator[Picture]:
    for path in sorted((workdir / PICTURES).rglob("*.png"))[:_MOST_PICTURES]:
        relative = path.relative_to(workdir)
        name = relative.relative_to(PICTURES).with_suffix("").as_posix()
        caption = _CAPTIONS.get(name.rstrip("0123456789"), f"{name}.")
        yield Picture(caption, relative, path.read_bytes())


def _charts(charts: Sequence[Chart]) -> list[Block]:
    return [Charts(charts)] if charts else []


def _what_ran(run: Run, about: About) -> list[Block]:
    rows = [("task", run.task), ("gin file", about.file or "own files only")]
    rows += [_row(line) for line in about.plan.splitlines() if not line.endswith(":")]
    if not run.starts:
        return [Table(("", ""), rows)]
    last = run.starts[-1].environment
    versions = [
        f"{name} {version}" for name, version in last.get("versions", {}).items() if version
    ]
    rows += [
        ("hardware", _hardware(run)),
        ("system", str(last.get("system", ""))),
        ("git commit", str(last.get("commit") or "not in a checkout")),
        ("versions", ", ".join(versions)),
    ]
    command = shell.join(map(str, last.get("command", ())))
    return [Table(("", ""), rows), Code(command)]


def _row(line: str) -> tuple[str, str]:
    """Returns name and value of a line of a plan."""
    name, _, value = line.strip().partition(": ")
    return name, value


def _hardware(run: Run) -> str:
    last = run.starts[-1].environment
    gpus = sorted(set(map(str, last.get("gpus", ()))))
    return ", ".join([*gpus, f"{last.get('processor')}, {last.get('cores')} cores"])


def _changes(about: About) -> list[Block]:
    if about.file is None:
        return [Paragraph("The run follows no shipped gin file.")]
    if not about.changes:
        return [Paragraph(f"None: the run follows {about.file} exactly.")]
    rows = [(name, shipped or "not bound", value) for name, shipped, value in sorted(about.changes)]
    return [Table(("binding", about.file, "this run"), rows)]


def _time(run: Run, now: float) -> Table:
    hours = run.hours(now)
    rows = [
        ("time", describe_hours(hours)),
        ("device-hours", f"{hours * run.processes:.3g} (devices: {run.processes})"),
    ]
    if len(run.starts) > 1:
        rows.append(("starts", f"{len(run.starts)}; the time between them does not count"))
    if run.images:
        rows.append(("images seen", f"{run.images:,}, in {run.last('epoch') or 0:.4g} epochs"))
    rates = [rate for _, rate in run.points("images_per_second", "step")]
    if rates:
        rows.append(("images per second", f"{median(rates):,.1f} (median)"))
    memory = run.last("peak_memory_gb")
    if memory is not None:
        rows.append(("peak memory", f"{memory:.3g} GB per device"))
    return Table(("", ""), rows)


def describe_hours(hours: float) -> str:
    """Returns a time as hours, minutes and seconds, with days if there are any."""
    return str(timedelta(seconds=round(3600 * hours)))


def _files(workdir: Path) -> Table:
    """Returns the files and folders of a workdir with their sizes."""
    visible = (path for path in workdir.iterdir() if not path.name.startswith((".", "report.")))
    entries = sorted(visible)
    rows = []
    for path in entries[:_MOST_FILES]:
        # Not those in further folders, since the workdir may hold any number of other files.
        files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
        size = sum(file.stat().st_size for file in files)
        name = path.name if path.is_file() else f"{path.name}/"
        rows.append((name, str(len(files)), _describe_size(size)))
    if len(entries) > _MOST_FILES:
        rows.append((f"and {len(entries) - _MOST_FILES} more", "", ""))
    return Table(("name", "files", "size"), rows)


def _describe_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
