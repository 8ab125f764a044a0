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

KEYS = ("step", "parameters", "buffers", "optimizer", "rng", "config", "versions", "scores", "data")

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
    if keep_last < 1 or keep_every < 0:
        raise UserError(
            f"keep_last is {keep_last} and keep_every {keep_every}; "
            "at least 1 checkpoint must be kept, and keep_every must be 0 or more steps"
        )
    folder = workdir / "checkpoints"
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
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


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Reads a checkpoint of this project, its tensors on the device.

    Raises:
      UserError: no such file, unreadable, or not a checkpoint of this project.
    """
    contents = tensor_files.read(path, device)
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
