"""Files of tensors and plain values, read without running code."""

import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from jigclu.system.errors import UserError


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
