"""Signals that ask a run to stop: the first one stops it in order, a second one at once.

SIGINT, SIGTERM, SIGHUP and SIGUSR1 raise `Stopped` in the main thread. In a `deferred` block they
are only noted for `requested`, so that training can complete a step and save it.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# torchrun and schedulers also send their signal to processes that have just received it.
_DUPLICATE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """The process was asked to stop; the message, if any, says what the same command does next."""


@dataclass
class _Request:
    """The first signal in a block of `handle`, whether signals are deferred, torchrun's number."""

    received: signal.Signals | None = None
    is_deferred: bool = False
    torchrun: int | None = None


_request = _Request()


@contextmanager
def handle() -> Iterator[None]:
    """Handles signals for the duration of a block, which must run in the main thread.

    Under torchrun, the end of torchrun counts as SIGTERM.
    """
    _request.torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    if _request.torchrun is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {number: signal.signal(number, _receive) for number in _SIGNALS}
    signal.set_wakeup_fd(writer)
    threading.Thread(target=_quit_on_second, args=(reader,), daemon=True).start()
    try:
        yield
    except SystemExit:
        # When one rank ends, torchrun signals the others, whose exit status must not depend on it.
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        _request.received = None


def _receive(number: int, frame: object) -> None:
    del frame
    if _request.received is None:
        _request.received = signal.Signals(number)
        if not _request.is_deferred:
            raise Stopped


def _quit_on_second(reader: int) -> None:
    """Ends the process at the second signal, even if the main thread waits for another rank."""
    first: float | None = None
    while received := os.read(reader, 1):
        if received[0] not in _SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > _DUPLICATE_SECONDS:
            name = signal.Signals(received[0]).name
            os.write(2, f"quit at once by a second signal, {name}\n".encode())
            os._exit(128 + received[0])
    os.close(reader)


def requested() -> bool:
    """Returns whether a signal has asked this process to stop."""
    return _request.received is not None


def check() -> None:
    """Raises Stopped if a signal has asked this process to stop."""
    if requested():
        raise Stopped


@contextmanager
def deferred(is_deferred: bool = True) -> Iterator[None]:
    """Makes signals in a block set `requested` instead of raising Stopped."""
    before, _request.is_deferred = _request.is_deferred, is_deferred
    try:
        yield
    finally:
        _request.is_deferred = before


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes signals raise Stopped again, in a part of a `deferred` block; also earlier ones."""
    with deferred(False):
        check()
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Ignores signals in a block, and in the processes that it starts.

    Worker processes receive the signals that are sent to all processes of a run, but it is for
    the training process to end them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def reason() -> str:
    """Returns what stopped this process, for messages."""
    if _request.received is None:
        return "a signal to another rank"
    if _request.torchrun not in (None, os.getppid()):
        return f"{_request.received.name}, because torchrun has ended"
    return _request.received.name


def exit_status() -> int:
    """Returns the exit status of a stopped process: 128 plus the number of the signal."""
    return 128 + (_request.received or signal.SIGTERM)
