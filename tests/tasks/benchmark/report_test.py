"""Tests of jigclu.tasks.benchmark.report."""

import json
from pathlib import Path
from typing import Any

import torch
from absl.testing import absltest
from matplotlib.figure import Figure
from PIL import Image

from jigclu.tasks.benchmark import report

NAMES = report.Table(
    title="Readers",
    columns=("reader", "images/s", "ratio"),
    rows=[("slow", 81.04, 1.0), ("fast", 1434.4, None)],
    note="Of one core.",
    panels=(("images/s",),),
)
NUMBERS = report.Table(
    title="Growth",
    columns=("patches", "s", "s, other"),
    rows=[(1024.0, 0.01234, 0.5), (4096.0, 0.0, None)],
    note="",
    panels=(("s", "s, other"),),
)


class ReportTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def test_markdown(self) -> None:
        self.assertEqual(
            report.markdown(NAMES),
            "## Readers\n\n| reader | images/s | ratio |\n|---|---|---|\n"
            "| slow | 81 | 1 |\n| fast | 1,434 |  |\n\nOf one core.",
        )
        self.assertIn("| 1,024 | 0.0123 | 0.5 |\n| 4,096 | 0 |  |", report.markdown(NUMBERS))

    def test_json_holds_everything_in_full(self) -> None:
        path = self.folder / "all.json"
        report.write_json(path, {"torch": "2"}, [NAMES, NUMBERS])
        contents = json.loads(path.read_text())
        self.assertEqual(contents["environment"], {"torch": "2"})
        self.assertEqual(
            contents["tables"][0]["rows"], [["slow", 81.04, 1.0], ["fast", 1434.4, None]]
        )
        self.assertEqual(contents["tables"][1]["title"], "Growth")

    def test_plot_draws_a_panel_each(self) -> None:
        pixels = report.plot([NAMES, NUMBERS], self.folder / "plot.png")
        self.assertEqual(pixels.dtype, torch.uint8)
        with Image.open(self.folder / "plot.png") as image:
            self.assertEqual((3, image.height, image.width), tuple(pixels.shape))
        self.assertGreater(pixels.float().std(), 5)
        alone = report.plot([NAMES], self.folder / "one.png")
        self.assertLess(alone.shape[1], pixels.shape[1])

    def test_plot_draws_the_columns_of_a_panel(self) -> None:
        axes: Any = Figure().subplots()
        report._draw_lines(axes, NUMBERS, ("s", "s, other"))
        lines = [(line.get_label(), line.get_xydata().tolist()) for line in axes.get_lines()]
        # Empty cells and zeros are left out.
        self.assertEqual(lines, [("s", [[1024, 0.01234]]), ("s, other", [[1024, 0.5]])])
        axes = Figure().subplots()
        report._draw_bars(axes, NAMES, ("images/s",))
        self.assertEqual([bar.get_width() for bar in axes.patches], [81.04, 1434.4])
        self.assertEqual([label.get_text() for label in axes.get_yticklabels()], ["slow", "fast"])


if __name__ == "__main__":
    absltest.main()
