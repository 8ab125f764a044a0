"""Documents as Markdown (GitHub's dialect)."""

import re
from collections.abc import Sequence

from jigclu.system.charts import Bars, Chart, describe, describe_all
from jigclu.system.documents import (
    Block,
    Bullets,
    Charts,
    Code,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)

# Characters with a meaning in Markdown or HTML; an underscore has none within a word.
_SPECIAL = re.compile(r"[\\`*<>&|\[\]#~]|(?<!\w)_|_(?!\w)")


def to_markdown(document: Document) -> str:
    """Returns a document as Markdown."""
    parts = [f"# {_escape(document.title)}", _escape(document.summary)]
    for section in document.sections:
        if section.blocks:
            parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    return [f"## {_escape(section.title)}", *map(_block, section.blocks)]


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _escape(text)
        case Bullets(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Table(header, rows):
            return _table(header, rows)
        case Code(text):
            return _code(text)
        case Charts(charts):
            return "\n\n".join(_charts(charts))
        case Picture(caption, path, _):
            return f"![{_escape(caption)}](<{path.as_posix()}>)"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[*map(_escape, row)] for row in (header, *rows)]
    lines = [escaped[0], ["---"] * len(header), *escaped[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _charts(charts: Sequence[Chart | Bars]) -> list[str]:
    """Returns a table of all lines, and one of each chart of bars."""
    lines = [chart for chart in charts if isinstance(chart, Chart)]
    # Charts of the same values over different axes have the same rows.
    rows = dict.fromkeys(row for chart in lines for row in _values(chart))
    header = ("value", "first", "least", "greatest", "last", "compare")
    tables = [_table(header, list(rows))] if lines else []
    for chart in charts:
        if isinstance(chart, Bars):
            levels = {name: [value] for name, value in chart.levels.items()}
            bars = [
                (name, describe_all(values, chart.is_share))
                for name, values in (*chart.bars.items(), *levels.items())
                if values
            ]
            tables.append(_table(("", chart.title), bars))
    return tables


def _values(chart: Chart) -> list[tuple[str, ...]]:
    """Returns the rows of a table in place of a chart."""
    levels = [f"{name} {describe(value, chart.is_share)}" for name, value in chart.levels.items()]
    rows = []
    for name, points in chart.series.items():
        values = [value for _, value in points]
        if not values:
            continue
        label = chart.title if name == chart.title else f"{chart.title}: {name}"
        numbers = (values[0], min(values), max(values), values[-1])
        rows.append((label, *(describe(v, chart.is_share) for v in numbers), ", ".join(levels)))
    return rows


def _code(text: str) -> str:
    """Fences text, with more backticks than it contains in a row."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}"


def _escape(text: str) -> str:
    """Returns plain text as one line of Markdown."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))
