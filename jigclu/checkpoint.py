"""Checkpoints: whole files or none, read without running code, and weights of other origins.

A checkpoint is a dict of plain values and tensors (`KEYS`), which
`torch.load(weights_only=True)` reads. It appears under its name only once it is
complete and on the disk, so a crash or a full disk never costs an older one.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jigclu.errors import UserError

KEYS = ("step", "parameters", "buffers", "optimizer", "rng", "config", "versions", "scores", "data")

# What other trainers put before torchvision's names; the first that fits is stripped.
ENCODER_PREFIXES = (
    "module.encoder_q.",  # MoCo
    "module.base_encoder.",  # MoCo v3
    "module.encoder.",  # JigClu, SimSiam
    "encoder.",  # the same without DistributedDataParallel
    "module.",  # torchvision under DistributedDataParallel
    "",  # torchvision
)
HEADS = ("fc_clu.", "fc_loc.")
_NAME = re.compile(r"step_(\d{8,})\.pt")
_TEMPORARY_SUFFIX = ".tmp"
_SHOWN_KEYS = 3


class LoadReport(NamedTuple):
    """What became of every key when weights met a model."""

    loaded: list[str]
    missing: list[str]  # in the model, not in the file
    unexpected: list[str]  # in the file, not in the model
    mismatched: list[str]  # in both, with different shapes: "key [file] instead of [model]"

    def summary(self) -> str:
        """Returns several lines for people: what was loaded and, by name, what was not."""
        lines = [f"loaded {len(self.loaded)} tensors from the file"]
        for title, keys in (
            ("left at their initial values, missing in the file", self.missing),
            ("left at their initial values, of another shape in the file", self.mismatched),
            ("ignored, unknown to the model", self.unexpected),
        ):
            if keys:
                lines.append(f"{len(keys)} {title}:")
                lines.extend(f"  {key}" for key in keys)
        return "\n".join(lines)


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
        _write_whole(path, contents)
        _prune(path, keep_last, keep_every)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as RuntimeError.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be written: {reason}; "
            "free some disk space or choose another workdir (older checkpoints are untouched)"
        ) from error
    return path


def _write_whole(path: Path, contents: Mapping[str, Any]) -> None:
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f"{path.stem}.", suffix=_TEMPORARY_SUFFIX
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(contents), file)
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
    contents = _read(path, device)
    absent = [key for key in KEYS if key not in contents]
    if absent:
        raise UserError(
            f"checkpoint {path} lacks {', '.join(absent)}: it is no checkpoint of a JigClu run; "
            "to start from its weights alone give it as init_from"
        )
    return contents


def require(path: Path) -> None:
    """Raises UserError, which names what lies beside it, unless the file exists."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; {_neighbours(path)}")


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    require(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except Exception as error:  # A damaged file can raise anything.
        raise UserError(
            f"checkpoint {path} cannot be read: it is damaged, truncated or holds more than "
            f"plain values and tensors ({type(error).__name__}); give another one"
        ) from error
    if not isinstance(contents, dict):
        raise UserError(f"checkpoint {path} holds a {type(contents).__name__}, expected a dict")
    return contents


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor does the folder {path.parent}: check the path"
    # The newest say most; a folder of a long run may hold hundreds.
    names = sorted(entry.name for entry in path.parent.iterdir())[-5:]
    return (
        f"its folder has {', '.join(names)}: name one of them" if names else "its folder is empty"
    )


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Returns one line that names the keys in which two dicts of tensors differ, or None."""
    missing, unexpected, mismatched = _differences(expected, found)
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


def _differences(
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a file under our names, on the CPU.

    It may be our checkpoint, a published JigClu one, torchvision's, or one of the
    MoCo / SimSiam kind: prefixes are those of `ENCODER_PREFIXES`.

    Returns:
      Tensors named `encoder.<torchvision's name>`, or `fc_clu.…` and `fc_loc.…`;
      counters of batches (`num_batches_tracked`), which our BN has not, are left out.

    Raises:
      UserError: no such file, unreadable, or without tensors.
    """
    contents = _read(path, "cpu")
    if "parameters" in contents:
        weights = {**contents["parameters"], **contents.get("buffers", {})}
    else:
        weights = _rename(contents.get("state_dict", contents))
    if not weights:
        raise UserError(
            f"{path} holds no weights; expected a checkpoint of JigClu, or a state_dict of "
            f"torchvision's names; its keys are {_first([str(key) for key in contents])}"
        )
    return weights


def _rename(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {
        key: value
        for key, value in weights.items()
        if isinstance(value, Tensor) and not key.endswith("num_batches_tracked")
    }
    prefix = _encoder_prefix(tensors)
    return {
        _our_name(key.removeprefix(prefix)) if key.startswith(prefix) else key: value
        for key, value in tensors.items()
    }


def _encoder_prefix(keys: Iterable[str]) -> str:
    names = set(keys)
    # A key encoder beside the query's (MoCo) must not win: the order of the table decides.
    return next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}conv1.weight" in names), "")


def _our_name(name: str) -> str:
    return name if name.startswith(HEADS) else f"encoder.{name}"


def load_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Takes from found what fits the model, and the rest from the model.

    Args:
      found: weights under our names, as `read_weights` gives them.
      expected: parameters and buffers of the model.

    Returns:
      A dict with exactly the keys, dtypes and devices of expected, and the report.

    Raises:
      UserError: nothing of the encoder fits.
    """
    missing, unexpected, mismatched = _differences(expected, found)
    loaded = [key for key in expected if key in found and found[key].shape == expected[key].shape]
    report = LoadReport(loaded, missing, unexpected, mismatched)
    if not any(key.startswith("encoder.") for key in loaded):
        raise UserError(
            "init_from: nothing of the encoder could be loaded; expected keys like encoder.conv1."
            f"weight; {describe_mismatch(expected, found)}"
        )
    weights = {
        key: found[key].to(value) if key in loaded else value for key, value in expected.items()
    }
    return weights, report
