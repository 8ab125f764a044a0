"""Line and bar charts as SVG, which browsers show in light and dark without other libraries."""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Points = Sequence[tuple[float, float]]

_WIDTH, _LEFT, _RIGHT, _BOTTOM = 400, 54, 14, 44
_PLOT_HEIGHT = 180
_MARGIN = 0.06  # Above and below the lines, as a share of their range.
_LINE_HEIGHT = 18  # Of the title and of a row of the legend.
_LETTER = 7.4  # Mean width of a letter.
_ROW, _BAR = 24, 14  # Heights of a row of a bar chart, and of its bar.
_MOST_POINTS = 400  # Of a line; more of them would not be seen.
_MOST_DOTS = 40  # Points of a line that also shows each of them, with its value.
# Eight hues of similar weight that color-blind readers can tell from their neighbors in the order;
# further lines repeat them with dashes.
_LIGHT = ["#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948", "#e87ba4", "#eb6834"]
_DARK = ["#3987e5", "#199e70", "#c98500", "#37a437", "#9085e9", "#e66767", "#d55181", "#d95926"]


class Chart(NamedTuple):
    """Lines over a common axis.

    title: names the vertical axis, with its unit.
    x_label: of the horizontal axis, with its unit.
    series: points (x, y) of each line by its name, in the order of x; points that are not finite
      are left out.
    levels: horizontal lines by name, such as the value of guessing.
    is_share: whether values are shares, shown as percentages from 0 on.
    """

    title: str
    x_label: str
    series: Mapping[str, Points]
    levels: Mapping[str, float]
    is_share: bool


class Bars(NamedTuple):
    """Horizontal bars of values of 0 or more, the longest one first; one value or more.

    title: names the values, with their unit.
    bars: values of each bar by its name; several are shown as mean and standard deviation. Bars
      without values are left out.
    levels: reference values by name, shown as vertical lines.
    is_share: whether values are shares, shown as percentages.
    """

    title: str
    bars: Mapping[str, Sequence[float]]
    levels: Mapping[str, float]
    is_share: bool


class _Axis(NamedTuple):
    """Maps values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def draw(chart: Chart | Bars, margin: int = 0) -> str:
    """Returns a chart as an SVG element, whose colors follow the reader's color scheme.

    As a file of its own, it has a background.

    Args:
      chart: to draw.
      margin: empty pixels around it.
    """
    parts, height = _draw_bars(chart) if isinstance(chart, Bars) else _draw_lines(chart)
    width, height = _WIDTH + 2 * margin, height + 2 * margin
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{-margin} {-margin} {width} {height}" class="chart" role="img" '
        f'aria-label="{html.escape(chart.title)}"><style>{_style()}</style>'
        f'<text x="0" y="13" class="title">{html.escape(chart.title)}</text>'
        f"{''.join(parts)}</svg>"
    )


def _draw_lines(chart: Chart) -> tuple[list[str], int]:
    """Returns all elements but the title, and the height of the chart."""
    lines = {name: _visible(points) for name, points in chart.series.items()}
    legend, rows = _legend(list(lines) if len(lines) > 1 else [])
    top = _LINE_HEIGHT * (rows + 1) + 12
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    ys += [value for value in chart.levels.values() if math.isfinite(value)]
    low, high = _range(ys, _MARGIN)
    x_axis = _Axis(*_range(xs, 0.0), _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(0.0 if chart.is_share else low, high, top + _PLOT_HEIGHT, top)
    parts = [
        *legend,
        *_horizontal_axis(chart.x_label, x_axis, y_axis),
        *_vertical_axis(chart.is_share, x_axis, y_axis),
        *(
            part
            for number, (name, points) in enumerate(lines.items())
            for part in _line(name, points, number, chart.is_share, x_axis, y_axis)
        ),
        *(
            part
            for name, value in chart.levels.items()
            if math.isfinite(value)
            for part in _level(name, value, chart.is_share, x_axis, y_axis)
        ),
    ]
    return parts, top + _PLOT_HEIGHT + _BOTTOM


def _draw_bars(chart: Bars) -> tuple[list[str], int]:
    """Returns all elements but the title, and the height of the chart."""
    bars = {name: values for name, values in chart.bars.items() if values}
    texts = {name: describe_all(values, chart.is_share) for name, values in bars.items()}
    left = 10 + _LETTER * max(map(len, texts))
    right = _WIDTH - 10 - _LETTER * max(map(len, texts.values()))
    ends = [sum(_spread(values)) for values in bars.values()]
    axis = _Axis(0.0, max(*ends, *chart.levels.values(), 1e-9), left, right)
    # Names of levels are above the bars.
    top = _LINE_HEIGHT * (1 + len(chart.levels)) + 6
    bottom = top + _ROW * len(bars)
    parts = [f'<line class="axis" x1="{left}" x2="{left}" y1="{top}" y2="{bottom}"/>']
    # Each bar has the color of a line of its number, wherever it is sorted to.
    numbers = {name: number for number, name in enumerate(chart.bars)}
    ranked = sorted(bars, key=lambda name: -_spread(bars[name])[0])
    middles = {name: top + _ROW * (row + 0.5) for row, name in enumerate(ranked)}
    for name, y in middles.items():
        parts += _bar(name, bars[name], numbers[name], axis, y)
    for row, (name, value) in enumerate(chart.levels.items(), 1):
        text = f"{name} {describe(value, chart.is_share)}"
        parts += _vertical_level(text, axis.at(value), row, bottom)
    for name, y in middles.items():
        x = axis.at(sum(_spread(bars[name]))) + 6
        parts.append(f'<text x="{x}" y="{y + 4}" class="label">{texts[name]}</text>')
    return parts, bottom + 6


def describe(value: float, is_share: bool) -> str:
    """Returns a value as text: a share as a percentage, others with four digits."""
    return f"{value:.1%}" if is_share else f"{value:.4g}"


def describe_all(values: Sequence[float], is_share: bool) -> str:
    """Returns a value, or the mean and standard deviation of several, as text."""
    texts = [describe(value, is_share) for value in _spread(values)]
    return " ± ".join(texts) if len(values) > 1 else texts[0]


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation, which is 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round values in [low, high], evenly spaced, at most `most` of them.

    Args:
      low: smallest value.
      high: largest value, above low.
      most: 2 or more.
    """
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor > least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _visible(points: Points) -> Points:
    """Returns the finite points, of which long lines keep an even part with the last point."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    stride = -(-len(finite) // _MOST_POINTS) if finite else 1
    return finite[::-1][::stride][::-1]


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Returns the range of an axis, with a margin as a share of it; never empty."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return low - margin * (high - low), high + margin * (high - low)


def _horizontal_axis(label: str, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    bottom = y_axis.start
    middle = (x_axis.start + x_axis.end) / 2
    return [
        f'<line class="axis" x1="{x_axis.start}" x2="{x_axis.end}" y1="{bottom}" y2="{bottom}"/>',
        *(
            f'<text x="{x_axis.at(tick)}" y="{bottom + 16}" text-anchor="middle">'
            f"{_short(tick)}</text>"
            for tick in ticks(x_axis.low, x_axis.high, 5)
        ),
        f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{html.escape(label)}</text>',
    ]


def _vertical_axis(is_share: bool, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    parts = []
    for tick in ticks(y_axis.low, y_axis.high):
        y = y_axis.at(tick)
        text = f"{tick * 100:.6g}%" if is_share else _short(tick)
        parts.append(
            f'<line class="grid" x1="{x_axis.start}" x2="{x_axis.end}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<text x="{x_axis.start - 7}" y="{y + 4}" text-anchor="end">{text}</text>')
    return parts


def _level(name: str, value: float, is_share: bool, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    y = y_axis.at(value)
    # Above the line, unless that is outside of the chart.
    text_y = y - 5 if y > y_axis.end + 14 else y + 13
    label = html.escape(f"{name} {describe(value, is_share)}")
    return [
        f'<line class="level" x1="{x_axis.start}" x2="{x_axis.end}" y1="{y}" y2="{y}"/>',
        f'<text x="{x_axis.end}" y="{text_y}" text-anchor="end" class="label">{label}</text>',
    ]


def _line(
    name: str, points: Points, number: int, is_share: bool, x_axis: _Axis, y_axis: _Axis
) -> list[str]:
    places = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline class="{_classes(number)}" points="{path}"/>'] if len(points) > 1 else []
    if len(points) > _MOST_DOTS:
        return parts
    for (x, y), (at, value) in zip(places, points, strict=True):
        about = html.escape(f"{name}: {describe(value, is_share)} at {at:,.6g}")
        parts.append(
            f'<circle class="{_classes(number)}" cx="{x}" cy="{y}" r="2.5">'
            f"<title>{about}</title></circle>"
        )
    return parts


def _bar(name: str, values: Sequence[float], number: int, axis: _Axis, y: float) -> list[str]:
    mean, deviation = _spread(values)
    end, least, most = (axis.at(value) for value in (mean, mean - deviation, mean + deviation))
    parts = [
        f'<text x="{axis.start - 8}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>',
        f'<rect class="{_classes(number)}" x="{axis.start}" y="{y - _BAR / 2}" '
        f'width="{end - axis.start:.1f}" height="{_BAR}"/>',
    ]
    if deviation:
        parts.append(f'<line class="deviation" x1="{least}" x2="{most}" y1="{y}" y2="{y}"/>')
    return parts


def _vertical_level(text: str, x: float, row: int, bottom: float) -> list[str]:
    """Returns a level of a bar chart, whose text is in a row below the title."""
    y = _LINE_HEIGHT * row + 13
    # The text is on the side that has space.
    anchor = "start" if x < _WIDTH / 2 else "end"
    return [
        f'<line class="level" x1="{x}" x2="{x}" y1="{y + 5}" y2="{bottom}"/>',
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>',
    ]


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """Returns the entries of several lines, and how many rows they take."""
    parts, x, row = [], 0.0, 1 if names else 0
    for number, name in enumerate(names):
        width = 34 + _LETTER * len(name)
        if x > 0 and x + width > _WIDTH:
            x, row = 0.0, row + 1
        y = _LINE_HEIGHT * row + 13
        parts.append(
            f'<line class="{_classes(number)}" x1="{x:.0f}" x2="{x + 16:.0f}" y1="{y - 4}" '
            f'y2="{y - 4}"/><text x="{x + 21:.0f}" y="{y}">{html.escape(name)}</text>'
        )
        x += width
    return parts, row


def _classes(number: int) -> str:
    return f"series-{number % len(_LIGHT)}" + (" repeated" if number >= len(_LIGHT) else "")


def _short(value: float) -> str:
    """Returns a tick as text: 1,500 as 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _style() -> str:
    """Returns the styles of all charts of a page."""

    def colors(palette: Sequence[str]) -> str:
        return "".join(
            f".chart .series-{number}{{color:{color}}}" for number, color in enumerate(palette)
        )

    return (
        # Programs that draw SVG files often know currentColor, but no custom properties.
        ".chart{color-scheme:light dark;color:#404040;font:13px system-ui,sans-serif}"
        ".chart text{fill:currentColor}.chart .title{font-weight:600}"
        # A border in the color of the page keeps labels readable on top of lines.
        ".chart .label{stroke:Canvas;stroke-width:4;paint-order:stroke}"
        # Only in a file of its own: the colors of GitHub's pages.
        ".chart:root{background:#ffffff}.chart:root .label{stroke:#ffffff}"
        ".chart polyline,.chart line{stroke:currentColor;stroke-width:2;fill:none}"
        ".chart polyline{stroke-linejoin:round}.chart circle,.chart rect{fill:currentColor}"
        ".chart line.grid,.chart line.axis{stroke-width:1;opacity:.15}.chart line.axis{opacity:.6}"
        ".chart line.level{stroke-width:1.2;stroke-dasharray:5 4;opacity:.75}"
        ".chart .repeated{stroke-dasharray:7 2}"
        f"{colors(_LIGHT)}@media(prefers-color-scheme:dark){{.chart{{color:#c8c8c8}}"
        ".chart:root{background:#0d1117}.chart:root .label{stroke:#0d1117}"
        f"{colors(_DARK)}}}"
    )
