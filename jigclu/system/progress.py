"""Progress of long work: a live line on a terminal, or an occasional line in a log file.

    with progress.status("building the network"):
        ...
    for shard in progress.track(shards, "indexing shards"):
        ...

Work that ends within a few seconds shows nothing. Blocks may be nested; the line then names
all of them. Only the main process prints.
"""

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TextIO, TypeVar

from jigclu.system.errors import printable

_PATIENCE = 3.0  # Seconds of work before the first line.
_LOG_SECONDS = 30.0  # Between the lines in a log file.
_TICK_SECONDS = 0.5  # Between the updates of a live line.

_Item = TypeVar("_Item")


@dataclass(eq=False)
class Work:
    """Work in progress; its owner updates `what` and `done`.

    what: a short phrase, such as "indexing shards".
    total, done: items; without a total, items are shown once there are any.
    """

    what: str
    total: int | None
    began: float
    done: int = 0

    @property
    def count(self) -> str:
        """The item count as text that follows the phrase; empty if items are not counted."""
        if self.total is not None:
            return f", {self.done:,} of {self.total:,}"
        return f", {self.done:,} so far" if self.done else ""


class Console:
    """Prints all progress: messages, and below them one live line.

    The live line shows the work in progress, or without any the line of the monitor. A daemon
    thread updates it, so that it also changes during a single long call.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prints to a stream (default: standard error at the time of printing)."""
        self._given_stream = stream
        self._clock = clock
        self._lock = threading.RLock()
        self._works: list[Work] = []
        self._due = 0.0
        self._line = ""
        self._drawn = ""
        self._ticker: _Ticker | None = None
        self._copy: Callable[[str, str], None] | None = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An exception can keep a suspended generator alive, and with it the block of `track`.
        if self._works:
            self._end(self._works[0])
        self.keep_line()

    @property
    def is_live(self) -> bool:
        """Whether the stream is a terminal, which shows a live line."""
        return self._stream.isatty()

    @property
    def columns(self) -> int:
        """Characters that a live line may have: a line that wraps cannot be redrawn."""
        return shutil.get_terminal_size().columns - 1

    def message(self, text: str) -> None:
        """Prints text above the live line."""
        shown = printable(text)
        if self.is_live:
            shown = "\n".join(_wrap(line, self.columns) for line in shown.split("\n"))
        with self._lock:
            self._draw("")
            self._write(f"{shown}\n")
            self._draw(self._current_line())
            if self._copy is not None:
                self._copy("%s", printable(text))

    @contextmanager
    def copy_to(self, log: Callable[[str, str], None]) -> Iterator[None]:
        """Also passes messages to a function of a logger for the duration of a block."""
        self._copy = log
        try:
            yield
        finally:
            self._copy = None

    def set_line(self, line: str) -> None:
        """Sets the line that a terminal shows while no work is in progress."""
        with self._lock:
            self._line = line
            self._draw(self._current_line())

    def keep_line(self) -> None:
        """Leaves the line of `set_line` on the terminal for good."""
        with self._lock:
            if self._line:
                self._draw(self._line)
                self._write("\n")
            self._line = self._drawn = ""

    @contextmanager
    def status(
        self, what: str, total: int | None = None, patience: float = _PATIENCE
    ) -> Iterator[Work]:
        """Shows a block of work with its elapsed time.

        Args:
          what: a short phrase, such as "indexing shards".
          total: items, if the block counts them in `Work.done`.
          patience: seconds before the first line; 0 shows the work at once.
        """
        work = Work(what, total, self._clock())
        # Data sets are opened before there is a process group, so the launcher's rank counts.
        if os.environ.get("RANK", "0") != "0":
            yield work
            return
        self._begin(work, patience)
        try:
            yield work
        finally:
            self._end(work)

    def track(self, items: Iterable[_Item], what: str, total: int | None = None) -> Iterator[_Item]:
        """Yields items and shows how many are done; the total defaults to their length."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.status(what, total) as work:
            for item in items:
                yield item
                work.done += 1

    def tick(self) -> None:
        """Shows the work in progress if an update is due."""
        with self._lock:
            if not self._works or self._clock() < self._due:
                return
            if self.is_live:
                self._draw(self._current_line())
            else:
                self._write(f"{printable(self._description(None))}\n")
                self._due = self._clock() + _LOG_SECONDS

    def _begin(self, work: Work, patience: float) -> None:
        with self._lock:
            due = work.began + patience
            self._due = min(self._due, due) if self._works else due
            self._works.append(work)
            self.tick()
            if self._ticker is None:
                self._ticker = _Ticker(self.tick)

    def _end(self, work: Work) -> None:
        with self._lock:
            if work in self._works:
                # Nested work ends with it.
                del self._works[self._works.index(work) :]
            if self._works:
                return
            self._draw(self._current_line())
            ticker, self._ticker = self._ticker, None
        # Outside the lock, for which the last tick may be waiting.
        if ticker is not None:
            ticker.end()

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self._given_stream is None else self._given_stream

    def _current_line(self) -> str:
        if not self.is_live:
            return ""
        if self._works and self._clock() >= self._due:
            return self._description(self.columns)
        return self._line

    def _description(self, columns: int | None) -> str:
        """Describes the work in progress; only its phrase is cut to fit the columns."""
        what = ": ".join(work.what for work in self._works)
        innermost = self._works[-1]
        elapsed = timedelta(seconds=int(self._clock() - innermost.began))
        rest = f"{innermost.count}, {elapsed}"
        if columns is not None and len(what) + len(rest) > columns:
            what = what[: max(columns - len(rest) - 1, 0)] + "…"
        return what + rest

    def _draw(self, line: str) -> None:
        if line == self._drawn:
            return
        if self._drawn:
            self._write("\r" + " " * len(self._drawn) + "\r")
        self._write(printable(line))
        self._drawn = line

    def _write(self, text: str) -> None:
        # A log on a full disk, or a closed terminal, is no reason to stop the work.
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


def _wrap(line: str, columns: int) -> str:
    """Breaks a line between words, other than those of tables and commands, which are copied."""
    if len(line) <= columns or line.startswith("|") or " --" in line:
        return line
    return textwrap.fill(
        line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


class _Ticker:
    """A daemon thread that calls a function at intervals."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stops the thread after its current call."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            self._function()


CONSOLE = Console()


def status(
    what: str, total: int | None = None, patience: float = _PATIENCE
) -> AbstractContextManager[Work]:
    """Calls `Console.status` on the console of this process."""
    return CONSOLE.status(what, total, patience)


def track(items: Iterable[_Item], what: str, total: int | None = None) -> Iterator[_Item]:
    """Calls `Console.track` on the console of this process."""
    return CONSOLE.track(items, what, total)
