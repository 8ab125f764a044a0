"""Tables and charts of a comparison of methods."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jigclu.system.charts import Chart, Points
from jigclu.system.documents import Block, Charts, Document, Paragraph, Section, Table
from jigclu.training import run_records
from jigclu.training.run_records import SCORES

_DESCRIPTION = {
    "time": "Equal training time: every method trains about as long as the reference.",
    "images": "Equal images: every method trains for as many epochs as the reference.",
}


class Result(NamedTuple):
    """A finished run.

    method, budget, seed: which run.
    epochs: of its training.
    scores: of its evaluations, by name.
    workdir: of its training.
    """

    method: str
    budget: str
    seed: int
    epochs: float
    scores: dict[str, float]
    workdir: Path


def report_comparison(
    results: Sequence[Result],
    untrained: Mapping[str, float],
    seconds: Mapping[str, float],
    tried: Sequence[tuple[str, str, float]],
) -> Document:
    """Returns the report of a comparison.

    Args:
      results: of the runs that are finished.
      untrained: scores of random weights.
      seconds: of training per image, by method.
      tried: method, bindings and score of each trial.
    """
    sections: list[Section] = []
    for budget in dict.fromkeys(result.budget for result in results):
        own = [result for result in results if result.budget == budget]
        blocks: list[Block] = [
            Paragraph(_DESCRIPTION[budget]),
            _scores(own, untrained, seconds),
            _charts(own, seconds),
        ]
        sections.append(Section(f"Equal {budget}", blocks))
    trials = [(method, bindings, f"{score:.1%}") for method, bindings, score in tried]
    sections += [
        Section("Speed", [_speed(seconds)]),
        Section("Trials", [Table(("method", "settings", "held-out score"), trials)]),
    ]
    return Document("Comparison of methods", f"{len(results)} runs.", sections)


def _scores(
    results: Sequence[Result], untrained: Mapping[str, float], seconds: Mapping[str, float]
) -> Table:
    """Returns a table with one row per method."""
    names = [
        name
        for name in dict.fromkeys(name for result in results for name in result.scores)
        if name.rpartition("/")[2] in SCORES and "/" in name
    ]
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    rows = []
    for method, own in by_method.items():
        runs = [run_records.read(result.workdir) for result in own]
        images = statistics.fmean(run.images for run in runs)
        hours = images * seconds[method] / 3600
        cells = [_spread([result.scores[name] for result in own]) for name in names]
        rows.append((method, f"{own[0].epochs:.3g}", f"{images:,.0f}", f"{hours:.2f}", *cells))
    random = [f"{untrained[name]:.1%}" if name in untrained else "" for name in names]
    rows.append(("untrained", "0", "0", "0", *random))
    return Table(("method", "epochs", "images seen", "hours", *names), rows)


def _spread(values: Sequence[float]) -> str:
    """Returns a mean, with the standard deviation of several values."""
    mean = f"{statistics.fmean(values):.1%}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1%}"


def _charts(results: Sequence[Result], seconds: Mapping[str, float]) -> Charts:
    """Returns kNN accuracy over training time and images, of the first seed of each method."""
    runs = {result.method: run_records.read(result.workdir) for result in reversed(results)}
    runs = dict(reversed(runs.items()))

    def chart(x_label: str, per_image: Mapping[str, float]) -> Chart:
        lines: dict[str, Points] = {
            name: [(images * per_image[name], value) for images, value in points]
            for name, run in runs.items()
            if (points := run.points("knn_accuracy", "images"))
        }
        chances = [run.levels("knn_accuracy").get("chance") for run in runs.values()]
        known = [value for value in chances if value is not None]
        return Chart("kNN accuracy", x_label, lines, {"chance": known[0]} if known else {}, True)

    return Charts(
        [
            chart("hours of training", {name: value / 3600 for name, value in seconds.items()}),
            chart("images seen", dict.fromkeys(seconds, 1.0)),
        ]
    )


def _speed(seconds: Mapping[str, float]) -> Table:
    rows = [(name, f"{1 / value:,.1f}", f"{1e3 * value:.2f}") for name, value in seconds.items()]
    return Table(("method", "images/s", "ms per image"), rows)
