"""How a run becomes a checkpoint and goes on from one."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

import jigclu
from jigclu.models import state_dicts
from jigclu.system.errors import UserError
from jigclu.training.state import TrainState

# Bindings that may differ when a run is resumed: they change how it computes, not what.
_OPERATIONAL = frozenset(
    (
        *(
            "device",
            "precision",
            "compile",
            "channels_last",
            "workers",
            "prefetch",
            "stop_after_steps",
        ),
        *("log_every", "picture_every", "checkpoint_every", "keep_last", "keep_every"),
        *("evaluation", "evaluate_every", "val_batch_size", "resume_from"),
    )
)
# What checkpoints of version 0.1, which did not have these bindings, were trained with.
_IMPLIED = {"train.pooling_map": "None"}
_TASKS = ("train", "finetune", "linear")


def check_same_run(contents: Mapping[str, Any], config: str, path: Path) -> None:
    """Raises UserError unless a checkpoint is of a run that would train alike.

    Args:
      contents: of the checkpoint.
      config: of the run that is to resume, one binding per line.
      path: of the checkpoint, for the message.
    """
    before, after = (_learning_bindings(text) for text in (contents["config"], config))
    if contents["versions"]["jigclu"] == "0.1.0":
        _check_warm_up(before, path)
        before = {name: value for name, value in _IMPLIED.items() if name in after} | before
    changed = [
        f"{name} was {before.get(name, 'unbound')} and is {after.get(name, 'unbound')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if changed:
        more = f" and {len(changed) - 1} more differ" if len(changed) > 1 else ""
        raise UserError(
            f"{path} is of a run of another configuration: {changed[0]}{more}; take the old "
            "values to resume, or another workdir (and init_from, to begin with its weights)"
        )


def _check_warm_up(bindings: Mapping[str, str], path: Path) -> None:
    """Raises UserError for a run of version 0.1 whose learning rate would now differ."""
    for task in _TASKS:
        if float(bindings.get(f"{task}.warmup_epochs", 0)) > 0:
            raise UserError(
                f"{path} was written by version 0.1, whose learning rate after warm-up decayed "
                "differently: its run cannot resume; bind init_from to this file and choose "
                "another workdir, to start a new run with its weights"
            )


def check_same_data(old: str, new: str, path: Path) -> None:
    """Raises UserError unless two fingerprints of the training images are equal."""
    if old != new:
        raise UserError(
            f"{path} is of a run on other images: their number or names were others; give the "
            "old ones to resume, or another workdir (and init_from, to begin with its weights)"
        )


def _learning_bindings(config: str) -> dict[str, str]:
    bindings = dict(line.split(" = ", 1) for line in config.splitlines())
    return {name: value for name, value in bindings.items() if _changes_learning(name)}


def _changes_learning(name: str) -> bool:
    task, _, field = name.partition(".")
    # The same data may lie elsewhere on the machine that goes on; kNN only looks.
    return not (
        (task in _TASKS and field in _OPERATIONAL)
        or name == "train.init_from"
        or name.endswith((".root", ".download", ".download_to"))
        or name.startswith(("knn.", "val_split/"))
    )


def to_checkpoint(
    state: TrainState,
    config: str,
    data: str,
    scores: list[tuple[int, dict[str, float]]],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the checkpoint of a state (`checkpoint.KEYS`).

    Args:
      state: after its last step.
      config: all effective bindings, one per line.
      data: fingerprint of the training images.
      scores: steps, and what was scored after them, by name.
      machine: of `Machine.to_checkpoint`.
    """
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return {
        "step": state.step,
        "parameters": state.parameters,
        "buffers": state.buffers,
        "optimizer": {
            "momentum": state.momentum,
            "loss_scale": state.loss_scale,
            "good_steps": state.good_steps,
        },
        "rng": rng,
        "config": config,
        "versions": {
            "jigclu": jigclu.__version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        "data": data,
        "scores": scores,
        "machine": dict(machine),
    }


def started_precision(contents: Mapping[str, Any]) -> str | None:
    """Returns the precision in which the run of a checkpoint trains; None: it does not say."""
    chosen = contents.get("machine", {}).get("precision")
    if chosen is not None:
        return str(chosen[0])
    # Checkpoints of version 0.1 have the binding only, which could not be 'auto'.
    bound = re.search(r"^\w+\.precision = '(\w+)'$", contents["config"], re.MULTILINE)
    return bound[1] if bound else None


def restore(
    state: TrainState, contents: Mapping[str, Any], path: Path, precision: str
) -> TrainState:
    """Copies a checkpoint into the tensors of a state; returns it at the checkpoint's step.

    Args:
      state: before the first step.
      contents: of the checkpoint.
      path: of the checkpoint, for messages.
      precision: in which the run continues. The loss scale belongs to a precision: after a
        change it starts anew.

    Raises:
      UserError: the checkpoint is of another architecture.
    """
    optimizer = contents["optimizer"]
    for own, found in (
        (state.parameters, contents["parameters"]),
        (state.buffers, contents["buffers"]),
        (state.momentum, optimizer["momentum"]),
    ):
        copy(own, state_dicts.load_strict(found, own, path))
    torch.set_rng_state(contents["rng"]["cpu"].cpu())
    if torch.cuda.is_available() and "cuda" in contents["rng"]:
        torch.cuda.set_rng_state(contents["rng"]["cuda"].cpu())
    state = state._replace(step=contents["step"])
    if started_precision(contents) != precision:
        return state
    return state._replace(loss_scale=optimizer["loss_scale"], good_steps=optimizer["good_steps"])


def copy(to: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values into tensors of the same names."""
    with torch.no_grad():
        for name, tensor in to.items():
            tensor.copy_(values[name])
