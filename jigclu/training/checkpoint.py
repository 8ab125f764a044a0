"""Checkpoint files: written atomically, read without running code.

A checkpoint is a dict of plain values and tensors (`KEYS`), which `torch.load(weights_only=True)`
can read. It gets its name only after it is complete and on the disk, so a crash or a full disk
never destroys an older one.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
_EARLIER = "; to resume from an earlier checkpoint of the run, move this file to another folder"

_NAME = re.compile(r"step_(\d{8,})\.pt")


def save(
    workdir: Path, contents: Mapping[str, Any], step: int, keep_last: int, keep_every: int
) -> Path:
    """Writes workdir/checkpoints/step_<step>.pt, then removes outdated checkpoints.

    Args:
      workdir: of the run; created if missing.
      contents: plain values and tensors for all `KEYS`.
      step: steps taken so far.
      keep_last: number of latest checkpoints to keep, >= 1.
      keep_every: steps; checkpoints at its multiples are kept forever (0: none).

    Returns:
      The path of the new checkpoint.

    Raises:
      UserError: the file cannot be written (disk full, no permission); older ones are kept.
    """
    path = checkpoint_path(workdir, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, lambda file: torch.save(dict(contents), file))
        _prune(path, keep_last, keep_every)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as RuntimeError.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be written: {reason}; "
            "free some disk space or choose another --workdir (older checkpoints are kept)"
        ) from error
    return path


def _prune(newest: Path, keep_last: int, keep_every: int) -> None:
    for step, path in _steps(newest.parent)[:-keep_last]:
        # A run that resumed from an earlier step writes checkpoints that are not the latest.
        if path != newest and not (keep_every and step % keep_every == 0):
            path.unlink(missing_ok=True)
    for leftover in newest.parent.glob(f"step_*{files.TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("step_*.pt"))
    return sorted((int(name[1]), path) for path, name in names if name)


def latest(workdir: Path) -> Path | None:
    """Returns the checkpoint with the most steps in workdir/checkpoints, or None."""
    found = _steps(workdir / "checkpoints")
    return found[-1][1] if found else None


def checkpoint_path(workdir: Path, step: int) -> Path:
    """Returns the path of the checkpoint of a step."""
    return workdir / "checkpoints" / f"step_{step:08d}.pt"


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Reads a checkpoint of this project, with its tensors on the device.

    Raises:
      UserError: the file is missing, unreadable, or not a checkpoint of this project.
    """
    with _advice(path):
        contents = tensor_files.read(path, device)
    return _check(contents, path)


def peek(path: Path) -> dict[str, Any]:
    """Reads only the plain values of a checkpoint; its tensors stay on the disk.

    Raises the same errors as `load`, but does not detect corrupt tensors.
    """
    with _advice(path):
        contents = tensor_files.peek(path)
    return _check(contents, path)


@contextmanager
def _advice(path: Path) -> Iterator[None]:
    """Adds to the error about an existing file how to resume without it."""
    try:
        yield
    except UserError as error:
        if not path.is_file():
            raise
        raise UserError(f"{error}{_EARLIER}") from error


def _check(contents: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the contents if they are those of a checkpoint of this project."""
    versions = contents.get("versions")
    version = versions.get("jigclu") if isinstance(versions, dict) else None
    if version in _OLD_VERSIONS:
        raise UserError(
            f"checkpoint {path} was written by version {version}, whose settings had other "
            "names: its run cannot resume; bind init_from to this file and use another --workdir "
            "to start a new run from its weights"
        )
    missing = [key for key in KEYS if key not in contents]
    if missing:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(missing)}: it is not from a run of this project; "
            "bind init_from to it to start from its weights"
        )
    kinds = {"step": int, "config": str, "data": str, "scores": list} | dict.fromkeys(
        ("rng", "versions", "parameters", "buffers", "optimizer", "settings", "machine"), dict
    )
    wrong = [key for key, kind in kinds.items() if not isinstance(contents[key], kind)]
    if wrong:
        raise UserError(
            f"checkpoint {path} is corrupt: {', '.join(wrong)} have unexpected types{_EARLIER}"
        )
    return contents
