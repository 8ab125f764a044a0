"""The benchmark task: measures selected parts and writes tables and a plot to the workdir."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from jigclu.methods.jigsaw import Jigsaw
from jigclu.system import files, progress
from jigclu.system.device import check_compiler, launched_processes, local_device
from jigclu.system.errors import UserError, check
from jigclu.system.machine import PRECISIONS, choose_precision
from jigclu.tasks.benchmark.end_to_end import measure_end_to_end
from jigclu.tasks.benchmark.environment import describe_environment
from jigclu.tasks.benchmark.exchange import compute_exchange
from jigclu.tasks.benchmark.growth import measure_loss
from jigclu.tasks.benchmark.instruments import (
    Instruments,
    device_instruments,
    processor_instruments,
)
from jigclu.tasks.benchmark.noise_steps import network_size
from jigclu.tasks.benchmark.pieces import measure_pieces
from jigclu.tasks.benchmark.reading import check_reading, measure_reading
from jigclu.tasks.benchmark.report import Table, markdown, plot, write_json
from jigclu.tasks.benchmark.start import measure_start
from jigclu.tasks.benchmark.steps import measure_steps
from jigclu.tasks.benchmark.tables import (
    end_to_end_table,
    exchange_table,
    loss_table,
    pieces_table,
    reading_table,
    start_table,
    step_table,
)
from jigclu.tasks.benchmark.workload import (
    RECOMPILATIONS,
    all_arithmetics,
    all_variants,
    describe,
    final_stage,
)
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """Measures what pre-training costs.

    Attributes:
      task: pre-training that is measured; its method must be jigsaw clustering.
      parts: what to measure, in this order: any of "reading", "step", "end_to_end", "growth" and
        "start".
      repetitions: of each measurement; the tables show medians.
      images: number of images read per repetition of reading.
      compile: values of `compute.compile` to compare.
      precisions: values of `compute.precision` to compare.
      channels_last: values of `compute.channels_last` to compare.
      steps: training steps measured end to end.
      patches: sizes of the global batch, in patches, for which the clustering loss is measured.
      longest: seconds of one clustering loss above which larger batches are left out.
      ranks: numbers of ranks for which the bytes of the exchange are computed.
    """

    task: PretrainTask
    parts: tuple[str, ...]
    repetitions: int
    images: int
    compile: tuple[bool, ...]
    precisions: tuple[str, ...]
    channels_last: tuple[bool, ...]
    steps: int
    patches: tuple[int, ...]
    longest: float
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("repetitions", "steps"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(0 < self.longest < math.inf, "longest", self.longest, "finite seconds above 0")
        known = set(self.parts) <= set(self._parts())
        expected = f"some of {', '.join(self._parts())}"
        check(known and bool(self.parts), "parts", self.parts, expected)
        for name in ("compile", "precisions", "channels_last"):
            values = getattr(self, name)
            check(bool(values), name, values, "one value or more")
        names = {"auto", *PRECISIONS}
        chosen = set(self.precisions) <= names
        check(chosen, "precisions", self.precisions, f"some of {', '.join(sorted(names))}")
        if not isinstance(self.task.method, Jigsaw):
            raise UserError(
                f"task pre-trains by {type(self.task.method).__name__}; the benchmark compares "
                "with published jigsaw clustering: bind pretrain.method = @jigsaw()"
            )
        self._check_numbers("patches")
        patches = self.task.method.grid**2
        divisible = all(number % patches == 0 for number in self.patches)
        check(divisible, "patches", self.patches, f"multiples of grid**2 = {patches}")
        self._check_numbers("ranks")

    def check(self, workdir: Path) -> None:
        """Raises UserError for data that cannot be measured, and for missing packages."""
        self.task.check(workdir)
        if launched_processes() > 1:
            raise UserError(
                f"{launched_processes()} processes were started; the benchmark measures one: "
                "start it without torchrun"
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("the plot needs matplotlib, which is missing: pip install matplotlib")
        if True in self.compile:
            check_compiler()
        uneven = [count for count in self.ranks if self.task.batch_size % count]
        if uneven and "growth" in self.parts:
            raise UserError(
                f"ranks contains {uneven[0]}, which does not divide batch_size = "
                f"{self.task.batch_size}: use divisors of it"
            )
        if "reading" in self.parts:
            check_reading(self.task, self.images)

    def _check_numbers(self, name: str) -> None:
        values = getattr(self, name)
        growing = bool(values) and sorted(values) == list(values) and values[0] >= 1
        check(growing, name, values, "growing numbers from 1")

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, several lines."""
        del workdir
        return "\n".join(
            [
                f"device: {local_device(self.task.compute.device).type}",
                f"measures: {', '.join(self.parts)}",
                *self.task.details(),
            ]
        )

    def run(self, workdir: Path, config: str) -> RunResult:
        """Measures one part after another, and writes the results after each; returns no score.

        Raises:
          UserError: the workdir cannot be written.
        """
        self.task.choose_machine(None).apply()
        task = final_stage(self.task)
        instruments = device_instruments(local_device(task.compute.device))
        environment = describe_environment(instruments.device)
        tables: list[Table] = []
        with (
            Monitor.of_one_step(workdir, is_main=True) as monitor,
            torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS),
        ):
            monitor.text("config", 0, f"```\n{config}\n```")
            for part in self.parts:
                monitor.message(f"measuring: {part}")
                torch.cuda.empty_cache()  # The cache would count as used. Needs no GPU.
                with progress.status(part):
                    found = self._parts()[part](task, instruments)
                tables += found
                for table in found:
                    monitor.message(f"{markdown(table)}\n")
                    monitor.text(table.title, 0, markdown(table))
                _write(workdir, environment, tables)
            monitor.image("benchmark", 0, plot(tables, workdir / "benchmark.png"))
            monitor.message(f"done: benchmark.json, benchmark.md and benchmark.png in {workdir}")
        return RunResult({}, None)

    def _parts(self) -> dict[str, Callable[[PretrainTask, Instruments], list[Table]]]:
        return {
            "reading": self._measure_reading,
            "step": self._measure_step,
            "end_to_end": self._measure_end_to_end,
            "growth": self._measure_growth,
            "start": self._measure_start,
        }

    def _measure_reading(self, task: PretrainTask, _: Instruments) -> list[Table]:
        times = measure_reading(task, self.images, self.repetitions, processor_instruments())
        return [reading_table(describe(task), times)]

    def _measure_step(self, task: PretrainTask, instruments: Instruments) -> list[Table]:
        precisions = dict.fromkeys(
            choose_precision(name, instruments.device, None).value for name in self.precisions
        )
        arithmetics = all_arithmetics(tuple(precisions), self.channels_last)
        variants = all_variants(self.compile, arithmetics)
        steps = measure_steps(task, variants, self.repetitions, instruments)
        pieces = measure_pieces(task, arithmetics, self.repetitions, instruments)
        workload = describe(task)
        return [step_table(workload, steps), pieces_table(workload, pieces)]

    def _measure_end_to_end(self, task: PretrainTask, instruments: Instruments) -> list[Table]:
        found = measure_end_to_end(task, self.steps, self.repetitions, instruments)
        return [end_to_end_table(describe(task), found)]

    def _measure_growth(self, task: PretrainTask, instruments: Instruments) -> list[Table]:
        workload = describe(task)
        losses = measure_loss(task, self.patches, self.longest, self.repetitions, instruments)
        exchanges = compute_exchange(workload, network_size(task), self.ranks)
        return [loss_table(workload, losses, self.longest), exchange_table(workload, exchanges)]

    def _measure_start(self, task: PretrainTask, instruments: Instruments) -> list[Table]:
        return [start_table(measure_start(task, instruments))]


def _write(workdir: Path, environment: dict[str, str], tables: list[Table]) -> None:
    write_json(workdir / "benchmark.json", environment, tables)
    machine = "\n".join(f"- {name}: {value}" for name, value in environment.items())
    text = "\n\n".join(["# Benchmark", machine, *map(markdown, tables)])
    files.write_file(workdir / "benchmark.md", f"{text}\n".encode())
