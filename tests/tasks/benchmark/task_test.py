"""Tests of jigclu.tasks.benchmark.task."""

import contextlib
import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.data.sources import UnlabeledImages
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.task import BenchmarkTask
from jigclu.tasks.pretrain import PretrainTask
from tests.samples import write_image_tree
from tests.small_tasks import PRETRAINING

BENCHMARK = BenchmarkTask(
    task=PretrainTask(**PRETRAINING),
    parts=("growth",),
    repetitions=1,
    images=5,
    compile=(False,),
    precisions=("float32",),
    channels_last=(True,),
    steps=2,
    patches=(16, 64),
    longest=60.0,
    ranks=(1, 2),
)


class TaskTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def run_parts(self, *parts: str) -> str:
        write_image_tree(self.folder / "images")
        source = UnlabeledImages(str(self.folder / "images"))
        task = dataclasses.replace(
            BENCHMARK, parts=parts, task=dataclasses.replace(BENCHMARK.task, source=source)
        )
        task.check(self.folder / "run", "")
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            self.assertEqual(task.run(self.folder / "run", "seed = 0"), {})
        return printed.getvalue()

    def test_parts_leave_tables_figures_and_a_plot(self) -> None:
        printed = self.run_parts("growth", "reading")
        contents = json.loads((self.folder / "run" / "benchmark.json").read_text())
        self.assertEqual(
            [table["title"] for table in contents["tables"]],
            [
                "Clustering loss",
                "Bytes that a rank receives in a step",
                "Reading images, one core",
            ],
        )
        self.assertEqual(contents["environment"]["torch"], torch.__version__)
        text = (self.folder / "run" / "benchmark.md").read_text()
        for table in contents["tables"]:
            self.assertIn(f"## {table['title']}", text)
            self.assertIn(f"## {table['title']}", printed)
        self.assertTrue((self.folder / "run" / "benchmark.png").exists())

    def test_measures_what_trains_at_the_end(self) -> None:
        task = dataclasses.replace(BENCHMARK.task, smaller_patches=((1, 8),), init_from="w.pth")
        with mock.patch("jigclu.tasks.benchmark.task.measure_end_to_end") as measure:
            dataclasses.replace(BENCHMARK, task=task)._known()["end_to_end"]()
        measured = measure.call_args.args[0]
        self.assertEqual((measured.smaller_patches, measured.init_from), ((), None))

    @parameterized.parameters(
        ({"parts": ()}, "parts is ()"),
        ({"parts": ("steps",)}, "must be some of reading, step, end_to_end, growth, start"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"precisions": ("fp16",)}, "precision is 'fp16'"),
        ({"compile": ()}, "compile is empty"),
        ({"patches": (64, 16)}, r"patches is \(64, 16\); it must be growing"),
        ({"patches": (18,)}, r"patches is \(18,\); it must be multiples of grid\*\*2 = 4"),
        ({"ranks": (0, 1)}, r"ranks is \(0, 1\)"),
        ({"ranks": (1, 8)}, "ranks has 8, which cannot share batch_size = 4 evenly"),
        ({"longest": 0.0}, "longest is 0.0"),
        ({"parts": ("reading",)}, "needs a folder of images"),
        ({"task": dataclasses.replace(BENCHMARK.task, temperature=0.0)}, "temperature is 0"),
    )
    def test_mistakes(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            dataclasses.replace(BENCHMARK, **changes).check(self.folder, "")

    def test_needs_matplotlib_and_one_process(self) -> None:
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(UserError, "pip install matplotlib"),
        ):
            BENCHMARK.check(self.folder, "")
        several = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        with (
            mock.patch.dict("os.environ", several),
            self.assertRaisesRegex(UserError, "2 processes were started"),
        ):
            BENCHMARK.check(self.folder, "")


if __name__ == "__main__":
    absltest.main()
