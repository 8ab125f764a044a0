"""The task of measuring: parts to choose from, and what they leave in the workdir."""

import dataclasses
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
from jigclu.tasks.benchmark.environment import environment_of
from jigclu.tasks.benchmark.growth import exchanged, measure_loss
from jigclu.tasks.benchmark.pieces import measure_pieces
from jigclu.tasks.benchmark.reading import check_reading, measure_reading
from jigclu.tasks.benchmark.start import measure_start
from jigclu.tasks.benchmark.stepping import measure_steps, variants_of
from jigclu.tasks.benchmark.tables import Table, markdown, plot, write_json
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training.loop import check_least
from jigclu.training.monitor import Monitor

_COMPILED = 128  # Every kind of arithmetic compiles the same functions once more.


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """Measures what pre-training costs; what a field means stands in gin/benchmark.gin.

    Units: images of one repetition of reading; steps of training end to end; patches
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
        """Raises UserError for a value out of range, data that do not do, or absent packages."""
        del workdir, config
        self.task.check_values()
        local_device(self.task.device)
        if launched_processes() > 1:
            raise UserError(
                f"{launched_processes()} processes were started; the benchmark is of one: "
                "start it without torchrun"
            )
        known = self._known()
        unknown = [part for part in self.parts if part not in known]
        if not self.parts or unknown:
            raise UserError(f"parts is {self.parts}; it must be some of {', '.join(known)}")
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError(
                "matplotlib draws the plot and is not installed: pip install matplotlib"
            )
        check_least(self, {"repetitions": 1, "steps": 1})
        self._check_arithmetic()
        self._check_numbers("patches", self.task.grid**2)
        self._check_numbers("ranks", 1)
        uneven = [count for count in self.ranks if self.task.batch_size % count]
        if uneven and "growth" in self.parts:
            raise UserError(
                f"ranks has {uneven[0]}, which cannot share batch_size = {self.task.batch_size} "
                "evenly: give divisors of it"
            )
        if not 0 < self.longest < math.inf:
            raise UserError(f"longest is {self.longest}; it must be seconds above 0, and finite")
        if "reading" in self.parts:
            check_reading(self.task, self.images)

    def _check_arithmetic(self) -> None:
        for name in ("compile", "precisions", "channels_last"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; give one value or more")
        for precision in self.precisions:
            check_precision(precision)
        if self.task.compile is True or True in self.compile:
            check_compiler()

    def _check_numbers(self, name: str, divisor: int) -> None:
        values = getattr(self, name)
        if not values or sorted(values) != list(values) or values[0] < 1:
            raise UserError(f"{name} is {values}; it must be growing numbers from 1")
        if any(value % divisor for value in values):
            raise UserError(f"{name} is {values}; it must be multiples of grid**2 = {divisor}")

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
        """Measures part after part, writes what was found after each; returns no score.

        Raises:
          UserError: the workdir cannot be written.
        """
        self.task.choose_machine(None).apply()
        environment = environment_of(local_device(self.task.device))
        tables: list[Table] = []
        with (
            Monitor.of_one_step(workdir, is_main=True) as monitor,
            torch._dynamo.config.patch(recompile_limit=_COMPILED),
        ):
            monitor.text("config", 0, f"```\n{config}\n```")
            for part in self.parts:
                monitor.message(f"measuring: {part}")
                torch.cuda.empty_cache()  # Else it counts as taken; does nothing without a GPU.
                with progress.status(part):
                    found = self._known()[part]()
                tables += found
                for table in found:
                    monitor.message(f"{markdown(table)}\n")
                    monitor.text(table.title, 0, markdown(table))
                _write(workdir, environment, tables)
            monitor.image("benchmark", 0, plot(tables, workdir / "benchmark.png"))
            monitor.message(f"done: benchmark.json, benchmark.md and benchmark.png in {workdir}")
        return {}

    def _known(self) -> dict[str, Callable[[], list[Table]]]:
        # As it is trained at the end, and by itself: nothing read, nothing resumed.
        task = dataclasses.replace(self.task, smaller_patches=(), init_from=None, resume_from=None)
        device = local_device(task.device)
        precisions = tuple(
            dict.fromkeys(choose_precision(name, device, None).value for name in self.precisions)
        )
        variants = variants_of(self.compile, precisions, self.channels_last)
        arithmetics = variants_of((True,), precisions, self.channels_last)
        return {
            "reading": lambda: [measure_reading(task, self.images, self.repetitions)],
            "step": lambda: [
                measure_steps(task, variants, self.repetitions, device),
                measure_pieces(task, arithmetics, self.repetitions, device),
            ],
            "end_to_end": lambda: [measure_end_to_end(task, self.steps, self.repetitions, device)],
            "growth": lambda: [
                measure_loss(task, self.patches, self.longest, self.repetitions, device),
                exchanged(task, self.ranks),
            ],
            "start": lambda: [measure_start(task, device)],
        }


def _write(workdir: Path, environment: dict[str, str], tables: list[Table]) -> None:
    write_json(workdir / "benchmark.json", environment, tables)
    told = "\n".join(f"- {name}: {value}" for name, value in environment.items())
    text = "\n\n".join(["# Benchmark", told, *map(markdown, tables)])
    files.write_file(workdir / "benchmark.md", f"{text}\n".encode())
