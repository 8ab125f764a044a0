"""Curves of a run for its report, and its health in words."""

from collections.abc import Sequence

from jigclu.ops import health
from jigclu.system.charts import Chart, describe
from jigclu.system.documents import Block, Bullets, Charts, Paragraph, Section, Table
from jigclu.training.alarms import LEARNED, learned_share
from jigclu.training.records import tag
from jigclu.training.run_records import Run, is_share

_STEP = "step"
_MEANINGS = {
    "sibling_cosine": "mean cosine of crops of one image; high means that they are recognized",
    "other_cosine": "mean cosine of crops of different images; near 1 is a collapse",
    "alignment": "mean squared distance of crops of one image; falls as they are recognized",
    "uniformity": "the lower, the more evenly the embeddings are spread",
    "embedding_deviation": "0 if all embeddings are equal (collapse), 1 if they are spread evenly",
    "embedding_rank": "dimensions that the embeddings use (RankMe); near 1 is a collapse",
    "feature_rank": "dimensions that the encoder's features use (RankMe)",
}


def metric_charts(run: Run, groups: Sequence[str]) -> list[Chart]:
    """Returns charts of the numbers in groups of TensorBoard, such as loss and accuracy.

    A number with a chance level has a chart of its own, as have losses; the parts of a number,
    such as gradient_norm/encoder, share a chart, as do accuracies without chance level.
    """
    charts: dict[str, Chart] = {}
    for name in run.names:
        group = tag(name).partition("/")[0]
        points, levels = run.points(name, _STEP), run.levels(name)
        if group not in groups or len(points) < 2:
            continue
        base, _, part = name.partition("/")
        title = base
        if group == "accuracy" and not levels:
            # Other numbers than shares are settings, and parts are those of many classes.
            if part or not is_share(name):
                continue
            title, part = "accuracy", name
        chart = charts.get(title, Chart(title, _STEP, {}, levels, is_share(name)))
        series = {**chart.series, part or name: points}
        charts[title] = chart._replace(series=series, title=title if len(series) > 1 else name)
    return list(charts.values())


def health_section(run: Run) -> Section:
    """Returns alarms, and the measures of a run with what they say; empty without measures."""
    named = [name for name in run.names if run.levels(name) or name in health.NAMES]
    rows = [_row(run, name) for name in named if name not in run.scores]
    blocks: list[Block] = []
    if run.alarms:
        blocks.append(Bullets([f"Alarm at step {step}: {text}." for step, text in run.alarms]))
    elif any(name in health.NAMES for name in run.names):
        blocks.append(Paragraph("No alarm was raised."))
    if rows:
        blocks.append(Table(("measure", "first", "last", "chance", "best possible", ""), rows))
    charts = metric_charts(run, ("health",))
    return Section("Health", [*blocks, *([Charts(charts)] if charts else [])])


def _row(run: Run, name: str) -> tuple[str, ...]:
    share, levels = is_share(name), run.levels(name)
    first, last = run.first(name), run.last(name)
    assert first is not None and last is not None
    cells = [name, describe(first, share), describe(last, share)]
    if "chance" not in levels:
        return (*cells, "", "", _MEANINGS.get(name, ""))
    floor = levels.get("floor", 0.0)
    best = floor if name.endswith("loss") else 1.0
    learned = learned_share(name, last, levels["chance"], floor)
    return (*cells, describe(levels["chance"], share), describe(best, share), _say(learned))


def _say(learned: float) -> str:
    if learned < -LEARNED:
        return "worse than chance"
    if learned < LEARNED:
        return "at chance"
    return f"{learned:.0%} of the way from chance to the best possible"
