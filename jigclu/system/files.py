"""Files that are written as a whole or not at all, and their checksums."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jigclu.system.errors import UserError

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls write with an open file that takes its name, over an older one, once it is whole."""
    # Readable to whom the user's umask lets, which a file of tempfile is not.
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
    # The new name itself is on the disk only once its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file or none, and the folders above it.

    Raises:
      UserError: it cannot be written (disk full, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(data))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): free some disk space or take "
            "another --workdir"
        ) from error


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal, in the memory of a part of it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
