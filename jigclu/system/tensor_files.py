"""Files of tensors and plain values, read without running code."""

import argparse
import errno
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from jigclu.system import files
from jigclu.system.errors import UserError

# Key of the metadata of a .safetensors file, as in the file itself.
METADATA = "__metadata__"

_SUFFIXES = (".pt", ".pth", ".safetensors", ".tar", ".bin")
_ZIP_START = b"PK\x03\x04"
# What training scripts store beside tensors: their arguments, and scores as NumPy scalars.
# Building these classes runs no code of the file. NumPy 1 had another module for scalars.
_SCALAR: Any = np.float64(0).__reduce__()[0]


def _build_scalar(kind: Any, data: bytes) -> Any:
    """Builds a scalar; without data, NumPy would fill any amount of memory with zeros."""
    return _SCALAR(kind, data)


_PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes["All"] if kind not in "OV"},
    *((_build_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_FORBIDDEN = re.compile(r"(?:GLOBAL|class) ([\w.]+)")


class UnusableFileError(UserError):
    """A file exists, but its content cannot be used."""


class _ImplausibleError(Exception):
    """Sizes in a file that are larger than the file; the message is a reason for the user."""


def check_exists(path: Path) -> None:
    """Raises UserError, which lists the weights in its folder, unless the file exists."""
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: expected a file; {_neighbors(path / '_')}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; {_neighbors(path)}")


def read(path: Path, device: torch.device | str) -> dict[Any, Any]:
    """Reads a dict of plain values and tensors, written by torch.save or as safetensors.

    The metadata of a .safetensors file are below `METADATA`.

    Raises:
      UnusableFileError: the file is corrupt, or holds something else.
      UserError: the file is missing, the system cannot read it, or it differs from the checksum in
        the folder of an export.
    """
    check_exists(path)
    files.check_sum(path)
    return _read(path, device, mapped=False)


def peek(path: Path) -> dict[Any, Any]:
    """Reads the plain values of such a file; tensors stay on the disk, and are not verified.

    Raises: as `read`.
    """
    return _read(path, "cpu", mapped=True)


def check_sums(path: Path) -> None:
    """Reads a file of torch.save and compares its checksums, which torch itself does not verify.

    Raises: as `read`.
    """
    check_exists(path)
    with _one_line_errors(path):
        _check_unpacked_size(path)
        _check_sums(path)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # An unsuitable file can raise any error.
        # A run may have removed the file while it was read.
        check_exists(path)
        # Offsets of a damaged file may be out of range.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            denied = isinstance(error, PermissionError)
            reason = "you have no permission" if denied else error.strerror
            raise UserError(f"checkpoint {path} cannot be read: {reason}") from error
        reason = _reason(path, error)
        raise UnusableFileError(f"checkpoint {path} cannot be read: {reason}") from error


def _read(path: Path, device: torch.device | str, mapped: bool) -> dict[Any, Any]:
    check_exists(path)
    with _one_line_errors(path):
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device)
        _check_unpacked_size(path)
        if not mapped:
            _check_sums(path)
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            # Files of torch before 1.6 are no zip archives, and cannot be mapped.
            contents = torch.load(
                path,
                map_location=device,
                weights_only=True,
                mmap=mapped and zipfile.is_zipfile(path),
            )
        _check_tensors(contents)
    if not isinstance(contents, dict):
        kind = type(contents).__name__
        raise UnusableFileError(f"checkpoint {path} holds a {kind}; expected a dict")
    return contents


def _read_safetensors(path: Path, device: torch.device | str) -> dict[Any, Any]:
    with safetensors.safe_open(path, "pt", str(device)) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {METADATA: file.metadata() or {}} | tensors


def _check_unpacked_size(path: Path) -> None:
    """Raises _ImplausibleError for a zip archive that unpacks to more bytes than it has.

    torch.save does not compress, whereas compressed or overlapping entries can fill any memory.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise _ImplausibleError(
                f"it unpacks to {unpacked:,} bytes, more than the file has, although torch.save "
                "does not compress; use the original file"
            )


def _check_tensors(contents: Any) -> None:
    """Raises _ImplausibleError for tensors larger than their storage, whose copies fill memory."""
    if isinstance(contents, argparse.Namespace):
        contents = vars(contents)
    if isinstance(contents, torch.Tensor):
        is_plain = contents.layout is torch.strided and not contents.is_meta
        size = contents.numel() * contents.element_size()
        if not is_plain or size > contents.untyped_storage().nbytes():
            raise _ImplausibleError(
                f"it holds a tensor of shape {tuple(contents.shape)} that is sparse or repeats its "
                "values instead of storing them; save it as a dense tensor"
            )
    elif isinstance(contents, dict):
        _check_tensors(list(contents.values()))
    elif isinstance(contents, (list, tuple, set)):
        for value in contents:
            _check_tensors(value)


def _check_sums(path: Path) -> None:
    """Raises BadZipFile if a checksum does not match; torch does not verify them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
        if corrupt is not None:
            raise zipfile.BadZipFile(corrupt)


def _reason(path: Path, error: Exception) -> str:
    """Returns why a file cannot be read; calls it damaged only if the file itself proves it."""
    if isinstance(error, _ImplausibleError):
        return str(error)
    forbidden = _FORBIDDEN.search(str(error))
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
    if isinstance(error, zipfile.BadZipFile):
        return "a checksum in it does not match, so it is corrupt; copy or download it again"
    if not start or (start == _ZIP_START and not zipfile.is_zipfile(path)):
        return "its end is missing; copy or download it again"
    if forbidden:
        return (
            f"beside tensors and plain values it holds a {forbidden[1]}, and building that could "
            "run code; save only its state_dict"
        )
    return (
        f"{type(error).__name__}; expected a dict of tensors and plain values, written by "
        "torch.save or as .safetensors"
    )


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return f"its folder {path.parent} does not exist either: check the path"
    # A long run may leave hundreds of files; the last names are the newest checkpoints.
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in _SUFFIXES)[-5:]
    if not names:
        return f"its folder contains no file of weights ({', '.join(_SUFFIXES)}): check the path"
    return f"its folder contains {', '.join(names)}: choose one of them"
