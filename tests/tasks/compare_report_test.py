"""Tests of jigclu.tasks.compare_report."""

import json
from typing import Any
from unittest import mock

from absl.testing import absltest

from jigclu.system import environment
from jigclu.system.charts import Bars, Chart
from jigclu.system.documents import Document, Table
from jigclu.tasks.compare_report import (
    Comparison,
    Result,
    Trial,
    describe_machine,
    figures,
    health,
    report_comparison,
    to_json,
)
from jigclu.training import run_records
from tests.folder_case import FolderTestCase

MACHINE = {"processor": "AMD EPYC", "cores": 2}


class ReportTest(FolderTestCase):
    def comparison(self) -> Comparison:
        """Two seeds of one method, and one of a method without kNN evaluation."""
        curve = {"hours": [0.0, 1.0], "images": [0.0, 7200.0], "knn_accuracy": [0.05, 0.1]}
        none: dict[str, list[float]] = {"hours": [], "images": [], "knn_accuracy": []}
        rate = ("rate=1", "weight=2")
        first = Result(
            method="jigclu",
            budget="time",
            seed=0,
            settings=rate,
            epochs=9,
            images=7200,
            hours=1.0,
            scores={"linear/top1": 0.1},
            curve=curve,
            chance=0.01,
            health={"alarms": 1, "retrieval": 0.1, "retrieval_chance": 0.01, "feature_rank": 20},
            machine=MACHINE,
        )
        second = first._replace(
            seed=1,
            scores={"linear/top1": 0.3},
            health=first.health | {"retrieval": 0.3, "feature_rank": 40},
        )
        other = first._replace(
            method="supervised",
            settings=(),
            images=0,
            hours=0.0,
            scores={"linear/top1": 0.5},
            curve=none,
            chance=None,
            health={"alarms": 0},
        )
        trials = [Trial("jigclu", rate, 0.25), Trial("jigclu", ("rate=9",), None)]
        return Comparison(
            [first, second, other], {"linear/top1": 0.05}, {"jigclu": 0.5}, trials, "float32"
        )

    def test_tables_have_mean_and_deviation_over_seeds(self) -> None:
        document = report_comparison(self.comparison())
        self.assertEqual(
            self.table(document, "Equal time"),
            [
                ("jigclu", "9", "7,200", "1.00", "20.0% ± 14.1%", "rate=1, weight=2"),
                ("supervised", "9", "0", "0.00", "50.0%", ""),
                ("untrained", "0", "0", "0", "5.0%", ""),
            ],
        )
        self.assertEqual(self.table(document, "Speed"), [("jigclu", "2.0", "500.00")])
        self.assertEqual(
            self.table(document, "Trials"),
            [("jigclu", "rate=1, weight=2", "25.0%"), ("jigclu", "rate=9", "diverged")],
        )

    def test_health_has_means_over_seeds_and_all_alarms(self) -> None:
        self.assertEqual(
            self.table(report_comparison(self.comparison()), "Equal time", 1),
            [("jigclu", "20.0%", "1.0%", "30", "2"), ("supervised", "", "", "", "0")],
        )

    def test_health_of_a_run_is_that_of_its_second_half(self) -> None:
        values = [0.9, 0.7, 0.2, 0.4]
        lines: list[dict[str, Any]] = [
            {"step": step, "retrieval": value} for step, value in enumerate(values)
        ]
        lines += [{"step": 4, "loss": 1.0, "alarms": ["alarm: one", "alarm: two"]}]
        run = run_records.Run(self.folder, "", [], lines)
        found = health(run)
        self.assertAlmostEqual(found.pop("retrieval"), 0.3)
        self.assertEqual(found, {"alarms": 2})

    def test_seeds_that_diverged_are_counted(self) -> None:
        comparison = self.comparison()
        first, second, other = comparison.results
        changed = [first, second._replace(scores={}), other._replace(scores={})]
        document = report_comparison(comparison._replace(results=changed))
        cells = [row[4] for row in self.table(document, "Equal time")]
        self.assertEqual(cells, ["10.0% (1 of 2 diverged)", "diverged", "5.0%"])
        bars = figures(changed, {})["linear_top1"]
        assert isinstance(bars, Bars)
        self.assertEqual(bars.bars, {"jigclu": [0.1], "supervised": []})
        self.assertNotIn(
            "linear_top1", figures([result._replace(scores={}) for result in changed], {})
        )

    def test_figures(self) -> None:
        comparison = self.comparison()
        drawn = figures(comparison.results, comparison.untrained)
        curve, bars = drawn["knn_over_hours"], drawn["linear_top1"]
        assert isinstance(curve, Chart) and isinstance(bars, Bars)
        self.assertEqual(curve.series, {"jigclu": [(0.0, 0.05), (1.0, 0.1)]})
        self.assertEqual(curve.levels, {"chance": 0.01})
        self.assertEqual(bars.bars, {"jigclu": [0.1, 0.3], "supervised": [0.5]})
        self.assertEqual(bars.levels, {"untrained": 0.05})

    def test_values_as_json(self) -> None:
        values = json.loads(json.dumps(to_json(self.comparison())))
        self.assertEqual(values["runs"][1]["scores"], {"linear/top1": 0.3})
        self.assertEqual(values["runs"][1]["curve"]["knn_accuracy"], [0.05, 0.1])
        self.assertEqual(values["precision"], "float32")
        self.assertEqual(values["images_per_second"], {"jigclu": 2.0})
        self.assertIsNone(values["trials"][1]["score"])
        self.assertEqual(values["runs"][2]["machine"], MACHINE)

    def test_machine_of_the_last_start(self) -> None:
        for processor in ("first", "second"):
            with mock.patch.object(environment, "processor", return_value=processor):
                environment.add_environment(self.folder / "environment.json", 1)
        (self.folder / "config.gin").touch()
        found = describe_machine(run_records.read(self.folder))
        self.assertEqual(found["processor"], "second")
        self.assertIn("torch", found["versions"])
        self.assertNoCommonElements(found, ("host", "command", "started"))
        (self.folder / "environment.json").unlink()
        self.assertEqual(describe_machine(run_records.read(self.folder)), {})

    def table(self, document: Document, title: str, number: int = 0) -> list[tuple[str, ...]]:
        (section,) = (part for part in document.sections if part.title == title)
        tables = [block for block in section.blocks if isinstance(block, Table)]
        return [tuple(row) for row in tables[number].rows]


if __name__ == "__main__":
    absltest.main()
