"""Atomic writes of files, and checksums."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jigclu.system.dry_run import is_dry_run
from jigclu.system.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


def expand_home(path: str) -> str:
    """Returns a path as users write it with ~ replaced by the home directory."""
    return os.path.expanduser(path)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file that replaces an older one only once it is complete and on disk.

    Args:
      path: of the file; its folder must exist.
      write: writes the content to an open binary file.
    """
    assert not is_dry_run()
    # Unlike one of tempfile, this file has the permissions of the user's umask.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself is on disk only after a sync of the folder.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Writes data atomically, and creates missing folders; raises as `write_stream`."""
    write_stream(path, lambda file: file.write(data))


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file atomically in any number of parts, and creates missing folders above it.

    Args:
      path: of the file.
      write: writes the content to an open binary file.

    Raises:
      UserError: the file cannot be written (disk full, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free some disk space or choose "
            "another folder"
        ) from error


def unwritable(folder: Path) -> str | None:
    """Returns why files cannot be written to a folder, which may not exist yet, or None."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return "Not a directory"
    return None if os.access(existing, os.W_OK | os.X_OK) else "Permission denied"


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, which is read in parts to save memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
