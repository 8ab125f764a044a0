"""Checkpoints: whole files or none, read without running code.

A checkpoint is a dict of plain values and tensors (`KEYS`), which
`torch.load(weights_only=True)` reads. It appears under its name only once it is
complete and on the disk, so a crash or a full disk never costs an older one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jigclu.system import files, tensor_files
from jigclu.system.errors import UserError

KEYS = (
    *("step", "parameters", "buffers", "optimizer", "rng", "config", "settings", "versions"),
    *("scores", "data", "machine"),
)
# Runs of these versions had other settings.
_OLD_VERSIONS = ("0.1.0", "0.2.0")

_NAME = re.compile(r"step_(\d{8,})\.pt")


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
    path = path_of(workdir, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, lambda file: torch.save(dict(contents), file))
        _prune(path, keep_last, keep_every)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as RuntimeError.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be written: {reason}; "
            "free some disk space or choose another workdir (older checkpoints are untouched)"
        ) from error
    return path


def _prune(newest: Path, keep_last: int, keep_every: int) -> None:
    for step, path in _steps(newest.parent)[:-keep_last]:
        # A run that went back to an earlier step writes checkpoints that are not the last.
        if path != newest and not (keep_every and step % keep_every == 0):
            path.unlink(missing_ok=True)
    for leftover in newest.parent.glob(f"step_*{files.TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("step_*.pt"))
    return sorted((int(name[1]), path) for path, name in names if name)


def latest(workdir: Path) -> Path | None:
    """Returns the checkpoint of the most steps in workdir/checkpoints, or None."""
    found = _steps(workdir / "checkpoints")
    return found[-1][1] if found else None


def path_of(workdir: Path, step: int) -> Path:
    """Returns the path of the checkpoint of a step."""
    return workdir / "checkpoints" / f"step_{step:08d}.pt"


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Reads a checkpoint of this project, its tensors on the device.

    Raises:
      UserError: no such file, unreadable, or not a checkpoint of this project.
    """
    return _check(tensor_files.read(path, device), path)


def peek(path: Path) -> dict[str, Any]:
    """Reads the plain values of a checkpoint; its tensors stay on the disk.

    Raises: as `load`, except that damaged tensors go unnoticed.
    """
    return _check(tensor_files.peek(path), path)


def _check(contents: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the contents if they are those of a checkpoint of this project."""
    versions = contents.get("versions")
    version = versions.get("jigclu") if isinstance(versions, dict) else None
    if version in _OLD_VERSIONS:
        raise UserError(
            f"checkpoint {path} was written by version {version}, whose settings had other "
            "names: its run cannot resume; bind init_from to this file and choose another "
            "--workdir, to start a new run with its weights"
        )
    missing = [key for key in KEYS if key not in contents]
    if missing:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(missing)}: it is not a checkpoint of a run of "
            "this project; bind init_from to it to start with its weights"
        )
    kinds = {"step": int, "config": str, "data": str, "scores": list} | dict.fromkeys(
        ("rng", "versions", "parameters", "buffers", "optimizer", "settings", "machine"), dict
    )
    wrong = [key for key, kind in kinds.items() if not isinstance(contents[key], kind)]
    if wrong:
        raise UserError(
            f"checkpoint {path} is corrupt: {', '.join(wrong)} have unexpected types; use another "
            "one, or remove it to resume from the one before"
        )
    return contents
