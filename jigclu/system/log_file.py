"""Messages: those of this project on the terminal, all of them in a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging as absl_logging

from jigclu.system import progress
from jigclu.system.errors import UserError
from jigclu.system.files import writing


class _ConsoleHandler(logging.Handler):
    """Shows messages as lines of the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a message; a warning begins with "warning: "."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        record.is_shown = True
        progress.CONSOLE.message(f"{prefix}{record.getMessage()}")


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drops a message that cannot be written: a full disk must not stop training."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def own_messages() -> Iterator[None]:
    """Shows only messages of this project for the duration of a block, as lines of the console.

    Messages and warnings of libraries reach only the file of `log_to`, if there is one.
    """
    root, own = logging.getLogger(), absl_logging.get_absl_logger()
    others = [handler for handler in root.handlers if handler is absl_logging.get_absl_handler()]
    # Without any handler, Python would print warnings.
    console, nowhere = _ConsoleHandler(), logging.NullHandler()
    own.addHandler(console)
    root.addHandler(nowhere)
    for handler in others:
        root.removeHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in others:
            root.addHandler(handler)
        root.removeHandler(nowhere)
        own.removeHandler(console)


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
    # The console passes on what it shows.
    handler.addFilter(lambda record: not getattr(record, "is_shown", False))
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
