"""Checkpoints: whole files or none, read without running code.

A checkpoint is a dict of plain values and tensors (`KEYS`), which
`torch.load(weights_only=True)` reads. It appears under its name only once it is
complete and on the disk, so a crash or a full disk never costs an older one.
"""

import contextlib
import hashlib
import os
import re
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from jigclu.system.errors import UserError

KEYS = ("step", "parameters", "buffers", "optimizer", "rng", "config", "versions", "scores", "data")

_NAME = re.compile(r"step_(\d{8,})\.pt")
_TEMPORARY_SUFFIX = ".tmp"
_SHOWN_KEYS = 3


def save(
    workdir: Path, contents: Mapping[str, Any], step: int, keep_last: int, keep_every: int
) -> Path:
    """Writes workdir/checkpoints/step_<step>.pt, then removes the ones no longer wanted.

    Args:
      workdir: of the run; created where absent.
      contents: a dict with `KEYS`, of plain values and tensors.
      step: steps taken so far.
      keep_last: checkpoints kept at the end of the run, >= 1.
      keep_every: steps; checkpoints at its multiples are kept for ever (0: none).

    Returns:
      The path of the new checkpoint.

    Raises:
      UserError: it cannot be written (disk full, no permission); older ones are untouched.
    """
    if keep_last < 1 or keep_every < 0:
        raise UserError(
            f"keep_last is {keep_last} and keep_every {keep_every}; "
            "at least 1 checkpoint must be kept, and keep_every must be 0 or more steps"
        )
    folder = workdir / "checkpoints"
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: torch.save(dict(contents), file))
        _prune(path, keep_last, keep_every)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as RuntimeError.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be written: {reason}; "
            "free some disk space or choose another workdir (older checkpoints are untouched)"
        ) from error
    return path


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls write with an open file that takes its name, over an older one, once it is whole."""
    # Readable to whom the user's umask lets, which a file of tempfile is not.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}")
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
        write_whole(path, lambda file: file.write(data))
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


def _prune(newest: Path, keep_last: int, keep_every: int) -> None:
    for step, path in _steps(newest.parent)[:-keep_last]:
        # A run that went back to an earlier step writes checkpoints that are not the last.
        if path != newest and not (keep_every and step % keep_every == 0):
            path.unlink(missing_ok=True)
    for leftover in newest.parent.glob(f"step_*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("step_*.pt"))
    return sorted((int(name[1]), path) for path, name in names if name)


def latest(workdir: Path) -> Path | None:
    """Returns the checkpoint of the most steps in workdir/checkpoints, or None."""
    found = _steps(workdir / "checkpoints")
    return found[-1][1] if found else None


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Reads a checkpoint of this project, its tensors on the device.

    Raises:
      UserError: no such file, unreadable, or not a checkpoint of this project.
    """
    contents = read(path, device)
    absent = [key for key in KEYS if key not in contents]
    if absent:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(absent)}: it is no checkpoint of a JigClu run; "
            "to start from its weights alone give it as init_from"
        )
    kinds = {"step": int, "config": str, "data": str, "scores": list, "rng": dict, "versions": dict}
    kinds |= dict.fromkeys(("parameters", "buffers", "optimizer"), dict)
    wrong = [key for key, kind in kinds.items() if not isinstance(contents[key], kind)]
    if wrong:
        raise UserError(f"checkpoint {path} is damaged: its {', '.join(wrong)} are of no use")
    return contents


def peek(path: Path) -> dict[str, Any]:
    """Reads the plain values of a checkpoint that `load` accepts; its tensors stay on the disk."""
    contents: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
    return contents


def check_exists(path: Path) -> None:
    """Raises UserError, which names what lies beside it, unless the file exists."""
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: expected a file; {_neighbors(path / '_')}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; {_neighbors(path)}")


def read(path: Path, device: torch.device | str) -> dict[Any, Any]:
    """Reads any file of torch.save that holds a dict of plain values and tensors.

    Raises:
      UserError: no such file, unreadable, or something else in it.
    """
    check_exists(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, str(device))
        _check_sums(path)
        contents = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        # torch itself meets the end of a truncated file so.
        raise UserError(
            f"checkpoint {path} cannot be read ({error.strerror}): it is truncated, or may not be "
            "read; give another one, or remove this one to go on from the one before it"
        ) from error
    except Exception as error:  # A damaged file can raise anything.
        raise UserError(
            f"checkpoint {path} cannot be read: it is damaged, truncated or holds more than plain "
            f"values and tensors ({type(error).__name__}); give another one, or remove this one "
            "to go on from the one before it"
        ) from error
    if not isinstance(contents, dict):
        raise UserError(f"checkpoint {path} holds a {type(contents).__name__}, expected a dict")
    return contents


def _check_sums(path: Path) -> None:
    """Raises BadZipFile where a byte is not what was written: torch itself does not look."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor does the folder {path.parent}: check the path"
    # The newest say most; a folder of a long run may hold hundreds.
    names = sorted(entry.name for entry in path.parent.iterdir())[-5:]
    return (
        f"its folder has {', '.join(names)}: name one of them" if names else "its folder is empty"
    )


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Returns one line that names the keys in which two dicts of tensors differ, or None."""
    missing, unexpected, mismatched = differences(expected, found)
    parts = [
        f"{len(keys)} {title}: {_first(keys)}"
        for title, keys in (
            ("missing", [f"{key} {_shape(expected[key])}" for key in missing]),
            ("unexpected", [f"{key} {_shape(found[key])}" for key in unexpected]),
            ("of another shape", mismatched),
        )
        if keys
    ]
    return "; ".join(parts) or None


def differences(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    mismatched = [
        f"{key} {_shape(found[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    return missing, unexpected, mismatched


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _first(keys: list[str]) -> str:
    rest = len(keys) - _SHOWN_KEYS
    return ", ".join(keys[:_SHOWN_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def load_strict(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Returns the found tensors, in the order of expected, if keys and shapes are all equal.

    Raises:
      UserError: they are not; names the path and the keys.
    """
    mismatch = describe_mismatch(expected, found)
    if mismatch:
        raise UserError(
            f"checkpoint {path} is of another architecture: {mismatch}; "
            "give the configuration it was trained with, or another workdir"
        )
    return {key: found[key] for key in expected}
