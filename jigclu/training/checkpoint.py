"""Checkpoint files: written atomically, read without running code.

A checkpoint is a dict of plain values and tensors (`checkpoint_contents.KEYS`), which
`torch.load(weights_only=True)` can read. It gets its name only after it is complete and on the
disk, so a crash or a full disk never destroys an older one. A run resumes from the newest
checkpoint that is intact.
"""

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from jigclu.system import files, tensor_files
from jigclu.system.errors import UserError
from jigclu.system.tensor_files import UnusableFileError
from jigclu.training.checkpoint_contents import NAME, check_contents

_CORRUPT, _ABANDONED = ".corrupt", ".abandoned"


def save(
    workdir: Path, contents: Mapping[str, Any], step: int, keep_last: int, keep_every: int
) -> Path:
    """Writes workdir/checkpoints/step_<step>.pt, then removes outdated checkpoints.

    Args:
      workdir: of the run; created if missing.
      contents: plain values and tensors for all `checkpoint_contents.KEYS`.
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
        files.write_atomically(path, functools.partial(_write, dict(contents)))
        _prune(path, keep_last, keep_every)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be written: {reason}; "
            "free some disk space or choose another --workdir (older checkpoints are kept)"
        ) from error
    return path


def _write(contents: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        # torch's writer hides the error of the file behind its own.
        if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
            raise error.__context__ from None
        raise


def _prune(newest: Path, keep_last: int, keep_every: int) -> None:
    for step, path in _steps(newest.parent)[:-keep_last]:
        # A run that resumed from an earlier step writes checkpoints that are not the latest.
        if path != newest and not (keep_every and step % keep_every == 0):
            path.unlink(missing_ok=True)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    names = ((path, NAME.fullmatch(path.name)) for path in folder.glob("step_*.pt"))
    return sorted((int(name[1]), path) for path, name in names if name)


def latest(workdir: Path) -> Path | None:
    """Returns the newest intact checkpoint in workdir/checkpoints, or None if there is none at all.

    Raises:
      UserError: there are checkpoints, but none is intact.
    """
    problems = {}
    for _, path in reversed(_steps(workdir / "checkpoints")):
        problem = _problem(path)
        if not path.exists():
            # A run that saves in the meantime removes a checkpoint only once it has newer ones.
            return latest(workdir)
        if problem is None:
            return path
        problems[path] = problem
    if not problems:
        return None
    newest, *_ = problems.values()
    raise UserError(
        f"{newest}; no checkpoint in {workdir / 'checkpoints'} is intact: use another --workdir to "
        "start a new run"
    )


def _problem(path: Path) -> str | None:
    """Returns why a checkpoint is not intact, or None; reads the whole file once."""
    try:
        status = path.stat()
    except OSError as error:
        return f"checkpoint {path} cannot be read: {error.strerror}"
    return _problem_of_file(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache
def _problem_of_file(path: Path, modified: int, size: int) -> str | None:
    del modified, size  # Of this version of the file.
    try:
        tensor_files.check_sums(path)
        peek(path)
    except UnusableFileError as error:
        return str(error)
    except UserError:
        # Not damaged: whoever reads it reports the error.
        return None
    return None


def tidy(workdir: Path, start: Path | None) -> list[str]:
    """Prepares the checkpoints of a workdir for a run that starts from one of them.

    Removes incomplete files of killed runs. Renames checkpoints with more steps than the first:
    corrupt ones get the suffix .corrupt, and those of a run that goes back to an earlier step the
    suffix .abandoned.

    Args:
      workdir: of the run.
      start: checkpoint from which the run starts, which may be in another folder; None for a new
        run.

    Returns:
      A warning for each renamed file.
    """
    folder = workdir / "checkpoints"
    files.remove_leftovers(folder, "step_*")
    if start is None or not is_own(workdir, start):
        return []
    messages: list[str] = []
    first = next(step for step, path in _steps(folder) if path.name == start.name)
    for step, path in _steps(folder):
        if step <= first:
            continue
        problem = _problem(path)
        reason = problem or f"{path} is newer than resume_from"
        kept = _set_aside(path, _CORRUPT if problem else _ABANDONED)
        messages.append(f"warning: {reason}; the file is now {kept.name}")
    return messages


def _set_aside(path: Path, suffix: str) -> Path:
    target, number = path.with_name(path.name + suffix), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{suffix}{number}")
    path.rename(target)
    return target


def is_own(workdir: Path, path: Path) -> bool:
    """Returns whether a path is that of a checkpoint of the workdir, and exists."""
    own = (workdir / "checkpoints").resolve()
    return path.is_file() and path.resolve().parent == own and NAME.fullmatch(path.name) is not None


def check_room(
    workdir: Path, size: int, to_come: Sequence[int], keep_last: int, keep_every: int
) -> None:
    """Checks that the disk has room for the checkpoints of a run.

    Args:
      workdir: of the run; its existing checkpoints are pruned as `save` does.
      size: of one checkpoint in bytes.
      to_come: steps at which the run saves, ascending.
      keep_last: see `save`.
      keep_every: see `save`.

    Raises:
      UserError: the checkpoints do not fit, or the folder cannot be created.
    """
    folder = workdir / "checkpoints"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    existing = {step: path.stat().st_size for step, path in _steps(folder)}
    sizes = existing | dict.fromkeys(to_come, size)
    kept = set(sorted(sizes)[-keep_last:])
    kept |= {step for step in sizes if keep_every and step % keep_every == 0}
    # A new checkpoint is complete before an old one is removed.
    needed = size + max(0, sum(sizes[step] for step in kept) - sum(existing.values()))
    free = shutil.disk_usage(folder).free
    if to_come and needed > free:
        raise UserError(
            f"{folder} has room for {free / 1e6:,.0f} MB, but the checkpoints to come need "
            f"{needed / 1e6:,.0f} MB, {size / 1e6:,.0f} MB each: free some disk space, use another "
            f"--workdir, or keep fewer (saving.keep_last is {keep_last}, saving.keep_every is "
            f"{keep_every})"
        )


def checkpoint_path(workdir: Path, step: int) -> Path:
    """Returns the path of the checkpoint of a step."""
    return workdir / "checkpoints" / f"step_{step:08d}.pt"


def load(path: Path, device: torch.device | str) -> dict[str, Any]:
    """Reads a checkpoint of this project, with its tensors on the device.

    Raises:
      UserError: the file is missing, unreadable, or not a checkpoint of this project.
    """
    return check_contents(tensor_files.read(path, device), path)


def peek(path: Path) -> dict[str, Any]:
    """Reads only the plain values of a checkpoint; its tensors stay on the disk.

    Raises the same errors as `load`, but does not detect corrupt tensors.
    """
    return check_contents(tensor_files.peek(path), path)
