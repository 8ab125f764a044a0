"""Tables, figures and the JSON record of a comparison of methods."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jigclu.system import charts
from jigclu.system.charts import Bars, Chart, describe_all
from jigclu.system.documents import Block, Charts, Document, Paragraph, Section, Table
from jigclu.system.files import write_file
from jigclu.training.report import write_document
from jigclu.training.run_records import SCORES, Run, is_share

FIGURES, RESULTS = "figures", "results.json"
_DESCRIPTION = {
    "time": "Equal training time: every method trains about as long as the reference.",
    "images": "Equal images: every method trains for as many epochs as the reference.",
}
_CURVE = "knn_accuracy"
_HEALTH = ("retrieval", "retrieval_chance", "feature_rank")
# Of the environment; the rest tells about the user.
_MACHINE = ("commit", "versions", "cuda", "system", "gpus", "processor", "cores")
_MARGIN = 16  # Pixels around a figure.


class Trial(NamedTuple):
    """A trial of a candidate.

    method: name.
    settings: bindings of the candidate.
    score: on held-out training images; None if the trial diverged.
    """

    method: str
    settings: tuple[str, ...]
    score: float | None


class Result(NamedTuple):
    """A finished run.

    method, budget, seed: which run.
    settings: bindings of the candidate that was chosen.
    epochs, images, hours: of its training.
    scores: of its evaluations, by name, without those that diverged; empty if its training did.
    curve: hours, images and knn_accuracy during its training; of equal length, which is 0 for
      methods without kNN evaluation.
    chance: level of the curve, if known.
    health: of its training, as `health` returns it.
    machine: that trained last, with its versions and the commit.
    """

    method: str
    budget: str
    seed: int
    settings: tuple[str, ...]
    epochs: float
    images: int
    hours: float
    scores: dict[str, float]
    curve: dict[str, list[float]]
    chance: float | None
    health: dict[str, float]
    machine: dict[str, Any]


class Comparison(NamedTuple):
    """All results so far.

    results: of the runs that are finished, at least one.
    untrained: scores of random weights.
    seconds: of training per image, by method.
    trials: of all methods.
    precision: of all trainings and evaluations.
    """

    results: Sequence[Result]
    untrained: Mapping[str, float]
    seconds: Mapping[str, float]
    trials: Sequence[Trial]
    precision: str


def curve(run: Run, seconds: float) -> dict[str, list[float]]:
    """Returns the curve of a run that takes some seconds of training per image."""
    points = run.points(_CURVE, "images")
    return {
        "hours": [images * seconds / 3600 for images, _ in points],
        "images": [images for images, _ in points],
        _CURVE: [value for _, value in points],
    }


def chance(run: Run) -> float | None:
    """Returns the chance level of the curve of a run, if it is known."""
    return run.levels(_CURVE).get("chance")


def health(run: Run) -> dict[str, float]:
    """Returns the number of alarms of a run, and what it measures of its embeddings and features.

    These are means over the second half of training, because a single measurement has few images.
    """
    found = {"alarms": float(len(run.alarms))}
    for name in _HEALTH:
        values = [value for _, value in run.points(name, "step")]
        if values:
            found[name] = statistics.fmean(values[len(values) // 2 :])
    return found


def describe_machine(run: Run) -> dict[str, Any]:
    """Returns the machine and the versions of the last start of a run."""
    found = run.starts[-1].environment if run.starts else {}
    return {name: found[name] for name in _MACHINE if name in found}


def write_comparison(workdir: Path, comparison: Comparison) -> None:
    """Writes report.html, report.md, results.json, and figures/ with an SVG file per chart."""
    write_document(workdir, report_comparison(comparison))
    write_file(workdir / RESULTS, json.dumps(to_json(comparison), indent=1).encode())
    (workdir / FIGURES).mkdir(exist_ok=True)
    for budget, results in _group(comparison.results, "budget").items():
        for name, figure in figures(results, comparison.untrained).items():
            path = workdir / FIGURES / f"{budget}_{name}.svg"
            write_file(path, charts.draw(figure, _MARGIN).encode())


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns a comparison as plain values."""
    return {
        "precision": comparison.precision,
        "runs": [result._asdict() for result in comparison.results],
        "untrained": dict(comparison.untrained),
        "trials": [trial._asdict() for trial in comparison.trials],
        "images_per_second": {name: 1 / value for name, value in comparison.seconds.items()},
    }


def report_comparison(comparison: Comparison) -> Document:
    """Returns the report of a comparison."""
    sections: list[Section] = []
    for budget, results in _group(comparison.results, "budget").items():
        blocks: list[Block] = [
            Paragraph(_DESCRIPTION[budget]),
            _scores(results, comparison.untrained),
            Charts(list(figures(results, comparison.untrained).values())),
            _health(results),
        ]
        sections.append(Section(f"Equal {budget}", blocks))
    sections += [
        Section(
            "Speed",
            [Paragraph(f"Training in {comparison.precision}."), _speed(comparison.seconds)],
        ),
        Section("Trials", _trials(comparison.trials)),
    ]
    return Document("Comparison of methods", f"{len(comparison.results)} runs.", sections)


def figures(results: Sequence[Result], untrained: Mapping[str, float]) -> dict[str, Chart | Bars]:
    """Returns the charts of the results of a budget, by the names of their files."""
    found: dict[str, Chart | Bars] = {
        "knn_over_hours": _curves(results, "hours", "hours of training"),
        "knn_over_images": _curves(results, "images", "images seen"),
    }
    by_method = _group(results, "method")
    for name in _score_names(results, untrained):
        bars = {method: _values(runs, name) for method, runs in by_method.items()}
        levels = {"untrained": untrained[name]} if name in untrained else {}
        if any(bars.values()):
            found[name.replace("/", "_")] = Bars(name, bars, levels, True)
    return found


def _group(results: Sequence[Result], name: str) -> dict[str, list[Result]]:
    """Returns the results by a field, such as the method."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(getattr(result, name), []).append(result)
    return found


def _score_names(results: Sequence[Result], untrained: Mapping[str, float]) -> list[str]:
    """Returns the name of the most telling score of each evaluation, <evaluation>/<score>."""
    names: dict[str, str] = {}
    all_scores = (untrained, *(result.scores for result in results))
    for name in dict.fromkeys(name for scores in all_scores for name in scores):
        evaluation, _, score = name.rpartition("/")
        if evaluation and score in SCORES:
            names[evaluation] = min(names.get(evaluation, name), name, key=_rank)
    return list(names.values())


def _rank(name: str) -> int:
    return SCORES.index(name.rpartition("/")[2])


def _scores(results: Sequence[Result], untrained: Mapping[str, float]) -> Table:
    """Returns a table with one row per method."""
    names = _score_names(results, untrained)
    rows = []
    for method, own in _group(results, "method").items():
        hours, images = (
            statistics.fmean(getattr(result, name) for result in own)
            for name in ("hours", "images")
        )
        size = (f"{own[0].epochs:.3g}", f"{images:,.0f}", f"{hours:.2f}")
        cells = [_cell(own, name) for name in names]
        rows.append((method, *size, *cells, ", ".join(own[0].settings)))
    random = [f"{untrained[name]:.1%}" if name in untrained else "" for name in names]
    rows.append(("untrained", "0", "0", "0", *random, ""))
    return Table(("method", "epochs", "images seen", "hours", *names, "settings"), rows)


def _health(results: Sequence[Result]) -> Table:
    """Returns a table with one row per method: means over the seeds, and the alarms of all."""
    rows = []
    for method, own in _group(results, "method").items():
        cells = []
        for name in _HEALTH:
            values = [result.health[name] for result in own if name in result.health]
            share = is_share(name.removesuffix("_chance"))
            cells.append(charts.describe(statistics.fmean(values), share) if values else "")
        alarms = sum(result.health["alarms"] for result in own)
        rows.append((method, *cells, f"{alarms:.0f}"))
    return Table(("method", "retrieval", "chance", "feature rank", "alarms"), rows)


def _cell(results: Sequence[Result], name: str) -> str:
    """Returns mean and standard deviation of a score over the seeds of a method."""
    values = _values(results, name)
    if not values:
        return "diverged"
    missing = len(results) - len(values)
    lost = f" ({missing} of {len(results)} diverged)" if missing else ""
    return describe_all(values, True) + lost


def _values(results: Sequence[Result], name: str) -> list[float]:
    return [result.scores[name] for result in results if name in result.scores]


def _curves(results: Sequence[Result], x: str, x_label: str) -> Chart:
    """Returns kNN accuracy during training, of the first seed of each method."""
    first = {method: own[0] for method, own in _group(results, "method").items()}
    lines = {
        method: list(zip(result.curve[x], result.curve[_CURVE], strict=True))
        for method, result in first.items()
        if result.curve[_CURVE]
    }
    known = [result.chance for result in first.values() if result.chance is not None]
    return Chart("kNN accuracy", x_label, lines, {"chance": known[0]} if known else {}, True)


def _speed(seconds: Mapping[str, float]) -> Table:
    rows = [(name, f"{1 / value:,.1f}", f"{1e3 * value:.2f}") for name, value in seconds.items()]
    return Table(("method", "images/s", "ms per image"), rows)


def _trials(trials: Sequence[Trial]) -> list[Block]:
    """Returns a table; nothing if every method had a single candidate."""
    rows = [
        (method, ", ".join(settings), "diverged" if score is None else f"{score:.1%}")
        for method, settings, score in trials
    ]
    return [Table(("method", "settings", "held-out score"), rows)] if rows else []
