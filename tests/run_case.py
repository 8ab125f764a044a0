"""A test case that writes the records of runs by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.folder_case import FolderTestCase

CONFIG = """\
# Parameters for pretrain:
# ==============================================================================
launch.task = @pretrain()
pretrain.batch_size = 64
pretrain.evaluators = \\
    (@knn_evaluator(),
     @probe_evaluator())
"""
STARTED = 1_800_000_000.0  # 15 January 2027, 08:00 UTC
START = {
    "started": "2027-01-15T08:00:00Z",
    "command": ["python", "-m", "jigclu.launch", "--workdir=a b"],
    "commit": "abc123",
    "versions": {"python": "3.11.7", "torch": "2.15.0", "other": None},
    "system": "Linux",
    "gpus": ["NVIDIA H100", "NVIDIA H100"],
    "processes": 2,
    "processor": "x86_64",
    "cores": 16,
}
# Reports after 36 and 72 minutes, and evaluations before and after training.
LINES: tuple[dict[str, Any], ...] = (
    {"step": 0, "knn_accuracy": 0.25, "knn_accuracy_chance": 0.1},
    {"step": 10, "loss": 25.0, "location_accuracy": 0.26},
    {"step": 20, "loss": 21.0, "location_accuracy": 0.4, "embedding_rank": 9.5}
    | {"knn_accuracy": 0.625, "knn_accuracy_chance": 0.1, "images_per_second": 120.0},
)


class RunTestCase(FolderTestCase):
    """A test case with a temporary folder for workdirs."""

    def write_run(
        self,
        name: str,
        config: str = CONFIG,
        starts: Sequence[Mapping[str, Any]] = (START,),
        lines: Sequence[Mapping[str, Any]] = LINES,
    ) -> Path:
        """Writes the records of a run, whose lines follow each other by 36 minutes."""
        workdir = self.folder / name
        workdir.mkdir()
        (workdir / "config.gin").write_text(config)
        (workdir / "environment.json").write_text(json.dumps(starts))
        with open(workdir / "metrics.jsonl", "w") as file:
            for number, line in enumerate(lines):
                step = line["step"]
                counts = {"epoch": step / 20, "images": 64 * step}
                counts["time"] = STARTED + 36 * 60 * number
                chance = {"location_accuracy_chance": 0.25} if "loss" in line else {}
                file.write(f"{json.dumps({**line, **counts, **chance})}\n")
        return workdir
