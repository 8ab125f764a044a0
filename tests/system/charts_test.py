"""Tests of jigclu.system.charts."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from absl.testing import absltest, parameterized

from jigclu.system import charts
from jigclu.system.charts import Bars, Chart, Points

SVG = "{http://www.w3.org/2000/svg}"
# Elements that run scripts or load files.
UNSAFE = {f"{SVG}{name}" for name in ("script", "image", "use", "foreignObject", "a")}


def drawn(
    series: Mapping[str, Points], levels: Mapping[str, float] | None = None, share: bool = False
) -> ElementTree.Element:
    chart = Chart("title", "step", series, levels or {}, share)
    return ElementTree.fromstring(charts.draw(chart))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter(f"{SVG}text")]


def lines(svg: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Returns the points of each line, in pixels."""
    found = []
    for line in svg.iter(f"{SVG}polyline"):
        numbers = [float(number) for number in re.findall(r"[\d.]+", line.attrib["points"])]
        found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


class ChartsTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 217.0, [0.0, 50.0, 100.0, 150.0, 200.0]),
        (22.41, 23.75, [22.5, 22.75, 23.0, 23.25, 23.5, 23.75]),
        (-3e-5, 1e-5, [-3e-5, -2e-5, -1e-5, 0.0, 1e-5]),
        (1.2e6, 4.9e6, [2e6, 3e6, 4e6]),
    )
    def test_ticks_are_round(self, low: float, high: float, expected: list[float]) -> None:
        self.assertEqual(charts.ticks(low, high), expected)

    def test_values_are_in_proportion(self) -> None:
        ((first, second, third),) = lines(drawn({"loss": [(0, 1.0), (10, 2.0), (40, 4.0)]}))
        self.assertAlmostEqual((second[0] - first[0]) * 4, third[0] - first[0], delta=0.5)
        self.assertAlmostEqual((first[1] - second[1]) * 3, first[1] - third[1], delta=0.5)

    def test_level_has_the_height_of_its_value(self) -> None:
        svg = drawn({"loss": [(0, 1.0), (10, 2.0)]}, {"chance": 2.0})
        ((_, last),) = lines(svg)
        (level,) = (line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "level")
        self.assertEqual(float(level.attrib["y1"]), last[1])
        self.assertIn("chance 2", texts(svg))

    def test_shares_are_percentages_from_zero(self) -> None:
        svg = drawn({"accuracy": [(0, 0.4), (10, 0.5)]}, {"chance": 0.25}, share=True)
        self.assertContainsSubset(["0%", "10%", "50%", "chance 25.0%"], texts(svg))

    def test_only_several_lines_have_a_legend(self) -> None:
        points = [(0.0, 1.0), (1.0, 2.0)]
        self.assertNotIn("a", texts(drawn({"a": points})))
        many = {f"run number {number}": points for number in range(10)}
        svg = drawn(many)
        self.assertContainsSubset(list(many), texts(svg))
        classes = [line.attrib["class"] for line in svg.iter(f"{SVG}polyline")]
        self.assertEqual(classes[0::8], ["series-0", "series-0 repeated"])
        names = [element for element in svg.iter(f"{SVG}text") if element.text in many]
        for name in names:
            self.assertLess(float(name.attrib["x"]) + 6 * len(name.text or ""), charts._WIDTH)

    @parameterized.parameters(
        Chart("title", "step", {"a": [(0, 1.0), (9, 2.0)], "b": [(0, 1.0)]}, {"chance": 1.5}, True),
        Bars("title", {"a": [0.5], "b": [0.25, 0.75]}, {"chance": 0.1}, True),
    )
    def test_file_of_its_own_refers_to_nothing_else(self, *fields: Any) -> None:
        # absl passes a named tuple as its items.
        chart = Chart(*fields) if len(fields) == 5 else Bars(*fields)
        text = charts.draw(chart, margin=16)
        svg = ElementTree.fromstring(text)
        self.assertEqual({element.tag for element in svg.iter()} & UNSAFE, set())
        self.assertNotIn("href", text)
        self.assertNotRegex(text, r"url\(|@import|@font-face|https?://(?!www.w3.org/2000/svg)")
        self.assertIn("prefers-color-scheme:dark", text)
        # librsvg and Inkscape leave out what has a color by a custom property.
        self.assertNotIn("var(", text)
        size = f"{svg.attrib['width']} {svg.attrib['height']}"
        self.assertEqual(svg.attrib["viewBox"], f"-16 -16 {size}")

    def test_long_lines_are_thinned_and_end_with_the_last_point(self) -> None:
        (line,) = lines(drawn({"a": [(float(step), 1.0 + step) for step in range(10**4)]}))
        self.assertLessEqual(len(line), 400)
        self.assertEqual(line[-1][0], charts._WIDTH - charts._RIGHT)

    @parameterized.parameters(
        ([],), ([(0.0, 1.0)],), ([(0.0, 0.0), (1.0, 0.0)],), ([(0.0, math.nan), (1.0, math.inf)],)
    )
    def test_few_equal_and_infinite_values_are_drawn(self, points: Points) -> None:
        svg = charts.draw(Chart("title", "step", {"a": points}, {"chance": math.nan}, False))
        self.assertNotIn("nan", svg)
        self.assertNotIn("inf", svg)

    def test_names_are_escaped(self) -> None:
        name = "<script>&\"'"
        points = [(0.0, 1.0)]
        svg = charts.draw(Chart(name, name, {name: points, "b": points}, {name: 1.0}, False))
        self.assertNotIn("<script>", svg)
        self.assertEqual(texts(ElementTree.fromstring(svg)).count(name), 3)


class BarsTest(absltest.TestCase):
    def drawn(self, bars: Mapping[str, Sequence[float]]) -> ElementTree.Element:
        return ElementTree.fromstring(charts.draw(Bars("title", bars, {"chance": 0.2}, True)))

    def widths(self, svg: ElementTree.Element) -> list[float]:
        return [float(bar.attrib["width"]) for bar in svg.iter(f"{SVG}rect")]

    def test_longest_bar_is_first_and_keeps_its_color(self) -> None:
        svg = self.drawn({"a": [0.1], "b": [0.4], "c": [0.2]})
        self.assertEqual(
            texts(svg), ["title", "b", "c", "a", "chance 20.0%", "40.0%", "20.0%", "10.0%"]
        )
        longest, middle, least = self.widths(svg)
        self.assertAlmostEqual(longest, 2 * middle, delta=0.2)
        self.assertAlmostEqual(longest, 4 * least, delta=0.4)
        colors = [bar.attrib["class"] for bar in svg.iter(f"{SVG}rect")]
        self.assertEqual(colors, ["series-1", "series-2", "series-0"])

    def test_empty_bars_are_left_out_and_keep_their_color(self) -> None:
        svg = self.drawn({"a": [], "b": [0.5]})
        self.assertEqual([bar.attrib["class"] for bar in svg.iter(f"{SVG}rect")], ["series-1"])
        self.assertNotIn("a", texts(svg))

    def test_several_values_are_mean_and_deviation(self) -> None:
        svg = self.drawn({"a": [0.1, 0.3], "b": [0.2]})
        self.assertIn("20.0% ± 14.1%", texts(svg))
        first, second = self.widths(svg)
        self.assertEqual(first, second)
        (line,) = (line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "deviation")
        length = float(line.attrib["x2"]) - float(line.attrib["x1"])
        self.assertAlmostEqual(length / first, 2 * 0.1414 / 0.2, delta=0.02)

    def test_level_is_at_its_value(self) -> None:
        svg = self.drawn({"a": [0.2], "b": [0.1]})
        (level,) = (line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "level")
        bar = next(svg.iter(f"{SVG}rect"))
        end = float(bar.attrib["x"]) + float(bar.attrib["width"])
        self.assertAlmostEqual(float(level.attrib["x1"]), end, delta=0.1)

    def test_values_of_zero_are_drawn(self) -> None:
        svg = charts.draw(Bars("title", {"a": [0.0]}, {}, False))
        self.assertIn('width="0.0"', svg)


if __name__ == "__main__":
    absltest.main()
