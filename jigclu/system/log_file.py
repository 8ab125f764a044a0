"""The text that a run shows on the terminal, and log messages of libraries, in a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging as absl_logging

from jigclu.system import progress
from jigclu.system.errors import UserError
from jigclu.system.files import writing


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drops a message that cannot be written: a full disk must not stop training."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Appends messages of the console and of all loggers to a file for the duration of a block.

    Live lines, which the terminal overwrites, are left out. A UserError that leaves the block is
    the last line.

    Raises:
      UserError: the file cannot be created.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Handler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(absl_logging.PythonFormatter())
    plain = logging.getLogger("jigclu.console")
    plain.propagate, plain.level = False, logging.INFO
    copy = _Handler(path, encoding="utf-8", errors="backslashreplace")
    plain.addHandler(copy)
    logging.getLogger().addHandler(handler)
    try:
        with progress.CONSOLE.copy_to(plain.info):
            yield
    except UserError as error:
        plain.info("error: %s", error)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        plain.removeHandler(copy)
        handler.close()
        copy.close()
