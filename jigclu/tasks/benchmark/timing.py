"""Time and memory of actions, measured so that they can be compared."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

import torch

from jigclu.system import progress
from jigclu.tasks.benchmark.instruments import Action, Instruments

_Row = TypeVar("_Row")

_MATRIX = {"cpu": 2048, "cuda": 8192}  # Side of the matrices of `matmul_rate`.


class Seconds(NamedTuple):
    """Seconds per call of an action, over all repetitions."""

    median: float
    least: float
    most: float


class Cost(NamedTuple):
    """Time of an action, and the bytes that it needs beyond those held before it."""

    seconds: Seconds
    memory: int | None


def show_row(number: int, rows: int, name: str) -> AbstractContextManager[progress.Work]:
    """Shows immediately that a row of a table, from 1, is being measured."""
    return progress.status(f"row {number} of {rows}: {name}", patience=0)


def show_rows(rows: Mapping[str, _Row]) -> Iterator[tuple[str, _Row]]:
    """Yields names and values of rows, and shows which one is being measured."""
    for number, (name, value) in enumerate(rows.items(), 1):
        with show_row(number, len(rows), name):
            yield name, value


def time_call(action: Action, instruments: Instruments) -> float:
    """Returns the seconds of one call, until the device has finished its work."""
    instruments.synchronize()
    began = instruments.clock()
    action()
    instruments.synchronize()
    return instruments.clock() - began


def time_actions(
    actions: Mapping[str, Action], repetitions: int, instruments: Instruments
) -> dict[str, Seconds]:
    """Times each action; returns the seconds per call, by name.

    The actions take turns, so that a machine that slows down slows all of them equally.
    The first round, which compiles and fills caches, does not count.

    Args:
      actions: by name.
      repetitions: rounds that count, >= 1.
      instruments: the clock and the device.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    rounds = repetitions + 1
    with progress.status("timing") as work:
        for round_number in range(1, rounds + 1):
            for number, (name, action) in enumerate(actions.items(), 1):
                work.what = (
                    f"round {round_number} of {rounds}, row {number} of {len(actions)}: {name}"
                )
                times[name].append(_seconds_per_call(action, instruments))
    return {name: _summarize(taken[1:]) for name, taken in times.items()}


def _seconds_per_call(action: Action, instruments: Instruments) -> float:
    def call_repeatedly() -> None:
        for _ in range(instruments.calls_at_once):
            action()

    return time_call(call_repeatedly, instruments) / instruments.calls_at_once


def _summarize(times: Sequence[float]) -> Seconds:
    return Seconds(statistics.median(times), min(times), max(times))


def measure_costs(
    actions: Mapping[str, Action], repetitions: int, instruments: Instruments
) -> dict[str, Cost]:
    """Times each action, then measures the memory of one more call; arguments as `time_actions`."""
    seconds = time_actions(actions, repetitions, instruments)
    return {
        name: Cost(seconds[name], instruments.peak_memory(action))
        for name, action in show_rows(actions)
    }


def matmul_rate(precision: torch.dtype, repetitions: int, instruments: Instruments) -> float:
    """Returns the floating-point operations per second of a large square matrix product.

    This is the most that a device reaches in practice, because encoders mostly compute such
    products. Computed in TF32 if float32 convolutions are.
    """
    device = instruments.device
    side = _MATRIX[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        seconds = time_actions({"product": lambda: left @ right}, repetitions, instruments)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * side**3 / seconds["product"].least
