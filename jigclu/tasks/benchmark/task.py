"""The benchmark task: measures selected parts and writes tables and a plot to the workdir."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from jigclu.system import files, progress
from jigclu.system.device import check_compiler, launched_processes, local_device
from jigclu.system.errors import UserError
from jigclu.system.machine import check_precision, choose_precision
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
from jigclu.tasks.benchmark.workload import all_arithmetics, all_variants, describe, final_stage
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import check_least
from jigclu.training.monitor import Monitor

# Compilations that torch keeps per function: every kind of arithmetic needs another one.
_RECOMPILATIONS = 128


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """Measures what pre-training costs; gin/benchmark.gin describes the fields.

    Units: images per repetition of reading; steps of training end to end; patches
    of the global batch; longest in seconds.
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

    def check(self, workdir: Path, config: str) -> None:
        """Raises UserError for invalid values or data, and for missing packages."""
        del workdir, config
        self.task.check_values()
        local_device(self.task.device)
        if launched_processes() > 1:
            raise UserError(
                f"{launched_processes()} processes were started; the benchmark measures one: "
                "start it without torchrun"
            )
        unknown = [part for part in self.parts if part not in self._parts()]
        if not self.parts or unknown:
            raise UserError(
                f"parts is {self.parts}; it must contain some of {', '.join(self._parts())}"
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("the plot needs matplotlib, which is missing: pip install matplotlib")
        check_least(self, {"repetitions": 1, "steps": 1})
        self._check_arithmetic()
        self._check_numbers("patches", self.task.grid**2)
        self._check_numbers("ranks", 1)
        uneven = [count for count in self.ranks if self.task.batch_size % count]
        if uneven and "growth" in self.parts:
            raise UserError(
                f"ranks contains {uneven[0]}, which does not divide batch_size = "
                f"{self.task.batch_size}: use divisors of it"
            )
        if not 0 < self.longest < math.inf:
            raise UserError(f"longest is {self.longest}; it must be finite seconds above 0")
        if "reading" in self.parts:
            check_reading(self.task, self.images)

    def _check_arithmetic(self) -> None:
        for name in ("compile", "precisions", "channels_last"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; it needs at least one value")
        for precision in self.precisions:
            check_precision(precision)
        if self.task.compile is True or True in self.compile:
            check_compiler()

    def _check_numbers(self, name: str, divisor: int) -> None:
        values = getattr(self, name)
        if not values or sorted(values) != list(values) or values[0] < 1:
            raise UserError(f"{name} is {values}; it must contain growing numbers from 1")
        if any(value % divisor for value in values):
            raise UserError(f"{name} is {values}; it must contain multiples of grid**2 = {divisor}")

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, several lines."""
        del workdir
        return "\n".join(
            [
                f"device: {local_device(self.task.device).type}",
                f"measures: {', '.join(self.parts)}",
                *self.task.plan_details(),
            ]
        )

    def run(self, workdir: Path, config: str) -> dict[str, float]:
        """Measures one part after another, and writes the results after each; returns no score.

        Raises:
          UserError: the workdir cannot be written.
        """
        self.task.choose_machine(None).apply()
        task = final_stage(self.task)
        instruments = device_instruments(local_device(task.device))
        environment = describe_environment(instruments.device)
        tables: list[Table] = []
        with (
            Monitor.of_one_step(workdir, is_main=True) as monitor,
            torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS),
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
        return {}

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
