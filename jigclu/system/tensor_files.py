"""Files of tensors and plain values, read without running code."""

import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from jigclu.system.errors import UserError

_SUFFIXES = (".pt", ".pth", ".safetensors", ".tar", ".bin")
_REMEDY = "use another file; to resume from an older checkpoint, remove this one"


def check_exists(path: Path) -> None:
    """Raises UserError, which lists the weights in its folder, unless the file exists."""
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: expected a file; {_neighbors(path / '_')}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; {_neighbors(path)}")


def read(path: Path, device: torch.device | str) -> dict[Any, Any]:
    """Reads a dict of plain values and tensors, written by torch.save or as safetensors.

    Raises:
      UserError: the file is missing, unreadable, or holds something else.
    """
    return _read(path, device, mapped=False)


def peek(path: Path) -> dict[Any, Any]:
    """Reads the plain values of such a file; tensors stay on the disk, and are not verified.

    Raises: as `read`.
    """
    return _read(path, "cpu", mapped=True)


def _read(path: Path, device: torch.device | str, mapped: bool) -> dict[Any, Any]:
    check_exists(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, str(device))
        if not mapped:
            _check_sums(path)
        contents = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except OSError as error:
        # torch reports the end of a truncated file in this way.
        raise UserError(
            f"checkpoint {path} cannot be read ({error.strerror}): it is truncated, or you have no "
            f"permission; {_REMEDY}"
        ) from error
    except Exception as error:  # A corrupt file can raise any error.
        raise UserError(
            f"checkpoint {path} cannot be read: it is corrupt, truncated or holds more than plain "
            f"values and tensors ({type(error).__name__}); {_REMEDY}"
        ) from error
    if not isinstance(contents, dict):
        raise UserError(f"checkpoint {path} holds a {type(contents).__name__}; expected a dict")
    return contents


def _check_sums(path: Path) -> None:
    """Raises BadZipFile if a checksum does not match; torch does not verify them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
        if corrupt is not None:
            raise zipfile.BadZipFile(corrupt)


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return f"its folder {path.parent} does not exist either: check the path"
    # A long run may leave hundreds of files; the last names are the newest checkpoints.
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix in _SUFFIXES)[-5:]
    if not names:
        return f"its folder contains no file of weights ({', '.join(_SUFFIXES)}): check the path"
    return f"its folder contains {', '.join(names)}: choose one of them"
