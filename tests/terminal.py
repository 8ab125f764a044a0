"""A terminal and a clock for tests of what people see of a run."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from unittest import mock

from jigclu.system import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A replacement for `time.monotonic` that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen(written: str) -> list[str]:
    """Returns the lines that a terminal shows after a text was written to it."""
    lines = []
    for raw in written.split("\n"):
        line = ""
        for part in raw.split("\r"):
            line = part + line[len(part) :]
        lines.append(line.rstrip())
    return lines


@contextlib.contextmanager
def progress_log() -> Iterator[io.StringIO]:
    """Yields a log that gets all progress of the block, as if everything took minutes."""
    log = io.StringIO()
    clock = itertools.count(0, 60).__next__
    with (
        mock.patch.object(progress, "CONSOLE", progress.Console(log, clock)),
        mock.patch.object(progress, "_TICK_SECONDS", 3600.0),
    ):
        yield log
