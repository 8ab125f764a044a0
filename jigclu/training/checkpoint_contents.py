"""Contents of checkpoints: their keys, and the checks of what a file holds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jigclu.models.state_dicts import describe_mismatch
from jigclu.system.errors import UserError
from jigclu.system.tensor_files import UnusableFileError

KEYS = (
    *("step", "parameters", "buffers", "optimizer", "rng", "config", "settings", "versions"),
    *("scores", "data", "machine"),
)
NAME = re.compile(r"step_(\d{8,})\.pt")
# Runs of these versions had other settings.
_OLD_VERSIONS = ("0.1.0", "0.2.0")


def check_contents(contents: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the contents of a file if they are those of a checkpoint of this project.

    Raises:
      UnusableFileError: all keys exist, but not all values can be used.
      UserError: the file is of an older version or of another project.
    """
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
        raise UnusableFileError(
            f"checkpoint {path} is corrupt: {', '.join(wrong)} have unexpected types"
        )
    problem = _find_problem(contents, path)
    if problem:
        raise UnusableFileError(f"checkpoint {path} is corrupt: {problem}")
    return contents


def _find_problem(contents: Mapping[str, Any], path: Path) -> str | None:
    """Returns why values of the right types cannot be used, or None."""
    step, name = contents["step"], NAME.fullmatch(path.name)
    if isinstance(step, bool) or step < 0 or (name and int(name[1]) != step):
        return f"its step is {step!r}, which its name contradicts"
    for part in ("parameters", "buffers"):
        if not _holds_tensors(contents[part]):
            return f"{part} are not tensors by name"
    return (
        _find_optimizer_problem(contents["optimizer"], contents["parameters"])
        or _find_random_state_problem(contents["rng"])
        or _find_record_problem(contents)
    )


def _holds_tensors(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    )


def _find_optimizer_problem(
    optimizer: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> str | None:
    scalars = {"loss_scale", "good_steps", "updates"} & optimizer.keys()
    moments = {name: value for name, value in optimizer.items() if name not in scalars}
    if not moments or not {"loss_scale", "good_steps"} <= scalars:
        return "its optimizer lacks moments, loss_scale or good_steps"
    for name, values in moments.items():
        if not _holds_tensors(values):
            return f"{name} of its optimizer are not tensors by name"
        mismatch = describe_mismatch(parameters, values)
        if mismatch:
            return f"{name} of its optimizer does not match its parameters: {mismatch}"
    for name in sorted(scalars):
        if not (isinstance(optimizer[name], Tensor) and optimizer[name].numel() == 1):
            return f"{name} of its optimizer is not a number in a tensor"
    return None


def _find_random_state_problem(states: Mapping[str, Any]) -> str | None:
    for device, state in states.items():
        if not (isinstance(state, Tensor) and state.dtype == torch.uint8):
            return f"its random state (rng) of the {device} is not a tensor of bytes"
    try:
        torch.Generator().set_state(states["cpu"].cpu())
    except (KeyError, RuntimeError):
        return "torch does not accept its random state (rng)"
    return None


def _find_record_problem(contents: Mapping[str, Any]) -> str | None:
    for name in ("settings", "versions"):
        if not all(isinstance(text, str) for item in contents[name].items() for text in item):
            return f"{name} are not texts by name"
    if not all(map(_is_score, contents["scores"])):
        return "scores are not pairs of a step and numbers by name"
    for name, choice in contents["machine"].items():
        if not (isinstance(choice, list) and len(choice) == 2):
            return f"{name} of its machine is not a pair of a value and a reason"
    precision = contents["machine"].get("precision", [None])[0]
    return None if isinstance(precision, str) else "its machine has no precision"


def _is_score(item: object) -> bool:
    if not (isinstance(item, (list, tuple)) and len(item) == 2):
        return False
    step, scores = item
    return (
        isinstance(step, int)
        and isinstance(scores, dict)
        and all(isinstance(value, (int, float)) for value in scores.values())
    )
