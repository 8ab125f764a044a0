"""Tests of jigclu.training.metrics_file."""

import json
import math

from absl.testing import absltest

from jigclu.training import metrics_file
from jigclu.training.metrics_file import MetricsFile
from tests.folder_case import FolderTestCase


class MetricsFileTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "metrics.jsonl"

    def steps(self) -> list[int]:
        return [values["step"] for values in metrics_file.read(self.path)]

    def test_values_of_a_step_share_a_line(self) -> None:
        file = MetricsFile(self.path, 0, 8, 16)
        file.add(2, {"loss": 2.5})
        file.add(4, {"loss": 1.5})
        file.add(4, {"knn_accuracy": 0.25})
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        self.assertEqual([line.pop("time") > 1.7e9 for line in lines], [True, True])
        first = {"step": 2, "epoch": 0.25, "images": 32, "loss": 2.5}
        self.assertEqual(
            lines,
            [
                first,
                {"step": 4, "epoch": 0.5, "images": 64, "loss": 1.5, "knn_accuracy": 0.25},
            ],
        )

    def test_numbers_are_those_of_the_last_step_only(self) -> None:
        file = MetricsFile(self.path, 0, 8, 4)
        file.add(2, {"loss": 2.5})
        file.add(4, {"loss": 1.5, "rate": 0.1, "alarms": ["alarm: too hot"]})
        file.add(6, {"loss": 0.5})
        self.assertEqual(file.numbers(6), {"epoch": 0.75, "loss": 0.5})
        resumed = MetricsFile(self.path, 4, 8, 4)
        self.assertEqual(resumed.numbers(4), {"epoch": 0.5, "loss": 1.5, "rate": 0.1})
        self.assertEqual(resumed.numbers(2), {})

    def test_a_resumed_run_repeats_no_step(self) -> None:
        file = MetricsFile(self.path, 0, 8, 16)
        for step in (2, 4, 6, 8):
            file.add(step, {"loss": 1.0})
        file = MetricsFile(self.path, 4, 8, 16)
        self.assertEqual(self.steps(), [2, 4])
        # An evaluation that the killed process had not reached.
        file.add(4, {"knn_accuracy": 0.5})
        file.add(6, {"loss": 3.0})
        values = metrics_file.read(self.path)
        self.assertEqual(values[1]["knn_accuracy"], 0.5)
        self.assertEqual([line["loss"] for line in values], [1.0, 1.0, 3.0])

    def test_an_incomplete_line_is_dropped(self) -> None:
        MetricsFile(self.path, 0, 8, 16).add(2, {"loss": 1.0})
        for rest in (b'{"step": 3, "lo', b"\x00\x00\n", b"[]\n"):
            with open(self.path, "ab") as file:
                file.write(rest)
            self.assertEqual(self.steps(), [2])
            MetricsFile(self.path, 8, 8, 16).add(4, {"loss": 2.0})
            self.assertEqual(self.steps(), [2, 4])
            MetricsFile(self.path, 2, 8, 16)

    def test_other_values_than_numbers_survive(self) -> None:
        MetricsFile(self.path, 0, 8, 16).add(1, {"ratio": math.inf})
        self.assertEqual(metrics_file.read(self.path)[0]["ratio"], math.inf)


if __name__ == "__main__":
    absltest.main()
