"""Atomic writes of files, JSON records, and checksums."""

import contextlib
import enum
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jigclu.system.dry_run import is_dry_run
from jigclu.system.errors import UserError

TEMPORARY_SUFFIX = ".tmp"
# Checksums of the other files of a folder, in the format of the command sha256sum.
SUMS = "SHA256SUMS"


class Lock(enum.Enum):
    """Outcome of `lock`; the system releases a lock when its process ends, however it ends.

    TAKEN: this process holds it until it closes the file.
    HELD: another process holds it.
    UNSUPPORTED: the file system has no locks.
    """

    TAKEN = enum.auto()
    HELD = enum.auto()
    UNSUPPORTED = enum.auto()


def lock(file: IO[Any]) -> Lock:
    """Locks a file that is open for writing, without waiting."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.HELD
    except OSError:
        return Lock.UNSUPPORTED
    return Lock.TAKEN


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
            # Shows `remove_leftovers` of other processes that this one is alive.
            lock(file)
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


def remove_leftovers(folder: Path, stem: str) -> None:
    """Removes the temporary files of killed processes, but not those of running ones.

    Args:
      folder: need not exist.
      stem: pattern of the names of the files that were to be written, without suffix.
    """
    for leftover in folder.glob(f"{stem}.*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError), open(leftover, "r+b") as file:
            if lock(file) is Lock.TAKEN:
                leftover.unlink()


def write_file(path: Path, data: bytes) -> None:
    """Writes data atomically, and creates missing folders; raises as `write_stream`."""
    write_stream(path, lambda file: file.write(data))


def read_json(path: Path, missing: Any) -> Any:
    """Returns the values of a JSON file, or `missing` if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file atomically in any number of parts, and creates missing folders above it.

    Args:
      path: of the file.
      write: writes the content to an open binary file.

    Raises:
      UserError: the file cannot be written (disk full, no permission).
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Reports an OSError of the block as UserError: the path cannot be written."""
    try:
        yield
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


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Writes `SUMS`: the SHA-256 of each file of a folder, by name; raises as `write_stream`."""
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    write_file(folder / SUMS, "".join(lines).encode())


def check_sum(path: Path) -> None:
    """Raises UserError if `SUMS` in the folder of a file lists it with another SHA-256."""
    try:
        lines = path.with_name(SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for expected, _, name in (line.partition(" ") for line in lines):
        # A star marks a binary file.
        if name[1:] == path.name and expected.lower() != sha256(path):
            raise UserError(
                f"{path} is corrupt, its SHA-256 differs from {SUMS} in its folder: copy or export "
                "it again"
            )
