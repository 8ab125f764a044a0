"""Tests of jigclu.tasks.benchmark.task."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.data.folders import UnlabeledImages
from jigclu.system.errors import UserError
from jigclu.system.machine import Choice, Machine
from jigclu.tasks.benchmark import task
from jigclu.tasks.benchmark.end_to_end import EndToEnd, RunTime
from jigclu.tasks.benchmark.growth import LossCost
from jigclu.tasks.benchmark.instruments import device_instruments
from jigclu.tasks.benchmark.pieces import PieceCost
from jigclu.tasks.benchmark.reading import ReadingTimes
from jigclu.tasks.benchmark.start import StartTimes
from jigclu.tasks.benchmark.steps import StepCost, StepCosts
from jigclu.tasks.benchmark.task import BenchmarkTask
from jigclu.tasks.benchmark.timing import Cost, Seconds
from jigclu.tasks.benchmark.workload import Arithmetic, Variant
from jigclu.training.loop import RunResult
from jigclu.training.settings import with_settings
from tests.samples import SIMCLR, write_image_tree
from tests.small_tasks import PRETRAINING

BENCHMARK = BenchmarkTask(
    task=PRETRAINING,
    parts=("growth",),
    repetitions=6,
    images=5,
    compile=(False,),
    precisions=("float32",),
    channels_last=(True,),
    steps=2,
    patches=(16, 64),
    longest=60.0,
    ranks=(1, 2),
)
CPU = device_instruments(torch.device("cpu"))
CHOICES = {name: Choice(name, "bound") for name in ("float32", "bfloat16")} | {
    "auto": Choice("bfloat16", "native")
}


class Measured(NamedTuple):
    """The arguments of measurements after the task, and titles and first cells of their tables."""

    arguments: list[tuple[Any, ...]]
    tables: list[tuple[str, tuple[Any, ...]]]


class TaskTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def run_parts(self, *parts: str) -> str:
        write_image_tree(self.folder / "images")
        source = UnlabeledImages(str(self.folder / "images"))
        benchmark = dataclasses.replace(
            BENCHMARK,
            parts=parts,
            repetitions=1,
            task=with_settings(BENCHMARK.task, source=source),
        )
        benchmark.check(self.folder / "run")
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            self.assertEqual(benchmark.run(self.folder / "run", "seed = 0"), RunResult({}, None))
        return printed.getvalue()

    def test_parts_write_tables_and_a_plot(self) -> None:
        printed = self.run_parts("growth", "reading")
        contents = json.loads((self.folder / "run" / "benchmark.json").read_text())
        self.assertEqual(
            [table["title"] for table in contents["tables"]],
            [
                "Clustering loss",
                "Bytes that a rank receives per step",
                "Reading images, one core",
            ],
        )
        self.assertEqual(contents["environment"]["torch"], torch.__version__)
        text = (self.folder / "run" / "benchmark.md").read_text()
        for table in contents["tables"]:
            self.assertIn(f"## {table['title']}", text)
            self.assertIn(f"## {table['title']}", printed)
        self.assertTrue((self.folder / "run" / "benchmark.png").exists())

    def test_measures_the_final_stage_of_training(self) -> None:
        trained = with_settings(BENCHMARK.task, smaller_patches=((1, 8),), init_from="weights.pth")
        benchmark = dataclasses.replace(BENCHMARK, task=trained, parts=("start",))
        with (
            mock.patch.object(task, "measure_start", autospec=True) as measured,
            mock.patch.object(Machine, "apply", autospec=True) as applied,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            measured.return_value = StartTimes(1, 2, 3)
            benchmark.run(self.folder / "run", "")
        self.assertEqual(measured.call_args.args[0], BENCHMARK.task)
        applied.assert_called_once_with(BENCHMARK.task.choose_machine(None))

    def measure(self, part: str, benchmark: BenchmarkTask, **found: Any) -> Measured:
        """Measures a part with functions that only return what they are said to find."""
        with contextlib.ExitStack() as stack:
            functions = {
                name: stack.enter_context(
                    mock.patch.object(task, name, autospec=True, return_value=value)
                )
                for name, value in found.items()
            }
            tables = benchmark._parts()[part](benchmark.task, CPU)
        arguments = [functions[name].call_args.args[1:] for name in found]
        return Measured(arguments, [(table.title, table.rows[0][:2]) for table in tables])

    def test_reading_is_timed_by_the_processor_clock(self) -> None:
        times = ReadingTimes(5, {"published, PIL": Seconds(2.5, 1, 4), "files": Seconds(1, 1, 1)})
        measured = self.measure("reading", BENCHMARK, measure_reading=times)
        self.assertEqual(measured.tables, [("Reading images, one core", ("published, PIL", 2))])
        ((images, repetitions, instruments),) = measured.arguments
        self.assertEqual((images, repetitions), (5, 6))
        self.assertIs(instruments.clock, time.process_time)

    def test_steps_and_pieces_are_measured_in_all_arithmetics(self) -> None:
        benchmark = dataclasses.replace(
            BENCHMARK,
            precisions=("float32", "auto", "bfloat16"),
            compile=(True, False),
            channels_last=(True,),
        )
        cost = Cost(Seconds(0.5, 0.25, 1), 10**6)
        arithmetics = [Arithmetic("float32", True), Arithmetic("bfloat16", True)]
        step = StepCost("JigClu", Variant(True, arithmetics[0]), cost, 1)
        with mock.patch.object(task, "choose_precision", lambda name, *_: CHOICES[name]):
            measured = self.measure(
                "step",
                benchmark,
                measure_steps=StepCosts([step], {"float32": 1.0}, False),
                measure_pieces=[PieceCost("augment", cost, cost)],
            )
        self.assertEqual(
            measured.tables,
            [
                ("Training step", ("JigClu, compiled, float32, channels last", 8)),
                ("Pieces of a step", ("augment", 500)),
            ],
        )
        variants = [Variant(compiled, each) for compiled in (True, False) for each in arithmetics]
        self.assertEqual(measured.arguments, [(variants, 6, CPU), (arithmetics, 6, CPU)])

    def test_end_to_end_and_start_are_measured_on_the_device(self) -> None:
        run = EndToEnd(2, 3, RunTime(4, 0), RunTime(1, 1), 1)
        measured = self.measure("end_to_end", BENCHMARK, measure_end_to_end=run)
        self.assertEqual(measured.tables, [("End to end", ("files to parameters", 2))])
        self.assertEqual(measured.arguments, [(2, 6, CPU)])
        measured = self.measure("start", BENCHMARK, measure_start=StartTimes(1, 2, 3))
        self.assertEqual(measured.tables, [("Time to the first step", ("eager", 1))])
        self.assertEqual(measured.arguments, [(CPU,)])

    def test_growth_is_measured_for_losses_and_computed_for_ranks(self) -> None:
        measured = self.measure(
            "growth", BENCHMARK, measure_loss=[LossCost(16, Cost(Seconds(3, 1, 4), 0), None)]
        )
        self.assertEqual(
            measured.tables,
            [("Clustering loss", (16, 3)), ("Bytes that a rank receives per step", (1, 0))],
        )
        self.assertEqual(measured.arguments, [((16, 64), 60.0, 6, CPU)])

    @parameterized.parameters(
        ({"parts": ()}, r"parts is \(\); it must be some of"),
        ({"parts": ("steps",)}, "parts .* some of reading, step, end_to_end, growth, start$"),
        ({"repetitions": 0}, "repetitions is 0; it must be 1 or more"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"precisions": ("fp16",)}, "precisions .* some of auto, bfloat16, float16, float32$"),
        ({"precisions": ()}, r"precisions is \(\); it must be one value or more"),
        ({"compile": ()}, r"compile is \(\); it must be one value or more"),
        ({"channels_last": ()}, r"channels_last is \(\); it must be one value or more"),
        ({"patches": ()}, r"patches is \(\); it must be growing numbers"),
        ({"patches": (64, 16)}, r"patches is \(64, 16\); it must be growing numbers"),
        ({"patches": (18,)}, r"patches is \(18,\); it must be multiples of grid\*\*2 = 4"),
        ({"ranks": (0, 1)}, r"ranks is \(0, 1\); it must be growing numbers from 1"),
        ({"longest": 0.0}, "longest is 0.0; it must be finite seconds above 0"),
        ({"longest": math.inf}, "longest is inf"),
        (
            {"task": with_settings(PRETRAINING, method=SIMCLR)},
            r"task pre-trains by SimClr; .* jigsaw clustering: bind pretrain.method = @jigsaw\(\)$",
        ),
    )
    def test_invalid_values_are_rejected(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"^{message}"):
            dataclasses.replace(BENCHMARK, **changes)

    @parameterized.parameters(
        ({"ranks": (1, 8)}, "ranks contains 8, which does not divide batch_size = 4"),
        ({"parts": ("reading",)}, ".* needs a folder of images"),
        (
            {"task": with_settings(PRETRAINING, micro_batch_size=3)},
            "micro_batch_size is 3; it must divide the 4 images",
        ),
    )
    def test_a_run_that_cannot_be_measured_is_rejected(
        self, changes: dict[str, Any], message: str
    ) -> None:
        benchmark = dataclasses.replace(BENCHMARK, **changes)
        with self.assertRaisesRegex(UserError, f"^{message}"):
            benchmark.check(self.folder)

    def test_only_growth_needs_ranks_that_divide_the_batch(self) -> None:
        dataclasses.replace(BENCHMARK, ranks=(1, 8), parts=("start",)).check(self.folder)

    def test_plan_names_device_parts_and_montages(self) -> None:
        lines = BENCHMARK.plan(self.folder).splitlines()
        self.assertEqual(lines[:2], ["device: cpu", "measures: growth"])
        self.assertEqual(lines[2], "montages: 4 of 32x32 pixels per device")

    def test_needs_a_compiler_only_to_compile(self) -> None:
        with mock.patch.object(task, "check_compiler", side_effect=UserError("no compiler")):
            BENCHMARK.check(self.folder)
            with self.assertRaisesRegex(UserError, "no compiler"):
                dataclasses.replace(BENCHMARK, compile=(False, True)).check(self.folder)

    def test_needs_matplotlib_and_one_process(self) -> None:
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(UserError, "pip install matplotlib"),
        ):
            BENCHMARK.check(self.folder)
        several = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        with (
            mock.patch.dict("os.environ", several),
            self.assertRaisesRegex(UserError, "2 processes were started"),
        ):
            BENCHMARK.check(self.folder)


if __name__ == "__main__":
    absltest.main()
