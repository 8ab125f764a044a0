"""Protects a workdir from two runs at once."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from absl import logging

from jigclu.system.errors import UserError
from jigclu.system.files import Lock, lock, writing

_NAME = ".lock"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a workdir, which is created if it is missing, for the duration of a block.

    The lock is that of the system on the file workdir/.lock, which names its holder. The system
    releases it when the process ends in any way, so that nobody has to recognize stale locks by
    the process id in the file, which may be on another machine or used again.

    Raises:
      UserError: another process holds the lock; or the workdir cannot be written.
    """
    path = workdir / _NAME
    with writing(path):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        outcome = lock(file)
        file.seek(0)
        holder = file.read().strip()
        if outcome is Lock.HELD:
            raise UserError(
                f"workdir {workdir} is in use by {holder or 'another process'}: wait for its end, "
                "stop it, or use another --workdir"
            )
        if outcome is Lock.UNSUPPORTED:
            logging.warning(
                "%s is on a file system without locks: start no other run there", workdir
            )
        elif holder:
            logging.warning("the last run in %s, %s, was killed", workdir, holder)
        _note(file, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            _note(file, "")


def _note(file: TextIO, holder: str) -> None:
    # Works without the name of the holder, for which a full disk may have no room.
    with suppress(OSError):
        file.truncate(0)
        file.write(holder)
        file.flush()
