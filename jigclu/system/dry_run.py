"""Dry runs, which neither download nor write anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_ACTIVE = ContextVar("_ACTIVE", default=False)


class DownloadNeeded(Exception):
    """What a dry run would have to download before it could continue."""


@contextmanager
def dry_run() -> Iterator[None]:
    """Makes the block a dry run."""
    token = _ACTIVE.set(True)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_dry_run() -> bool:
    """Returns whether a dry run is in progress."""
    return _ACTIVE.get()


def check_download(what: str, where: str | Path) -> None:
    """Raises DownloadNeeded in a dry run; call it before a download.

    Args:
      what: name or URL of what is to be downloaded.
      where: file or folder to which it is to be downloaded.
    """
    if is_dry_run():
        raise DownloadNeeded(f"downloads: {what} to {where}")
