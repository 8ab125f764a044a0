"""Conversion of a run to a checkpoint and back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

import jigclu
from jigclu.models.state_dicts import load_strict
from jigclu.system.errors import UserError
from jigclu.training import checkpoint
from jigclu.training.process import Process
from jigclu.training.state import TrainState

History = list[tuple[int, dict[str, float]]]

# Settings that checkpoints of version 0.3.0 lack, with the values that its runs had, and values
# that it spelled otherwise.
_SINCE_0_3_0 = {"optimizer.nesterov": "False", "optimizer.decay_norms_and_biases": "True"}
_RENAMED = {"'AugmentationSettings'": "'ColorAugmentation'"}


class Recipe(NamedTuple):
    """Settings and images that determine what a run learns; a resumed run must have the same.

    settings: values by their path from the task, as `settings.learning_settings` returns them.
    images: fingerprint of the training images.
    """

    settings: dict[str, str]
    images: str


def start(
    path: Path | None,
    init_from: str | None,
    process: Process,
    state: TrainState,
    initialize: Callable[[str], str],
) -> tuple[TrainState, History, str]:
    """Returns the initial state of this process, earlier scores, and a message.

    Args:
      path: checkpoint to resume, or None to start a new run.
      init_from: initial weights of a new run, or None.
      process: of this rank.
      state: before the first step; its tensors are filled in place.
      initialize: loads initial weights into the state; returns a message.
    """
    if path is not None:
        contents = checkpoint.load(path, process.device)
        state = restore(state, contents, path, process.machine.precision.value)
        history = [(step, dict(scores)) for step, scores in contents["scores"]]
        return state, history, f"resumed from {path} at step {state.step}"
    return state, [], "" if init_from is None else initialize(init_from)


def check_same_run(contents: Mapping[str, Any], recipe: Recipe, path: Path) -> None:
    """Raises UserError unless a checkpoint comes from a run that learns in the same way.

    Args:
      contents: of the checkpoint.
      recipe: of the run that is to resume.
      path: of the checkpoint, for messages.
    """
    now = recipe.settings
    before = {name: value for name, value in _SINCE_0_3_0.items() if name in now}
    before |= {name: _RENAMED.get(value, value) for name, value in contents["settings"].items()}
    changed = [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in [*now, *(name for name in before if name not in now)]
        if before.get(name) != now.get(name)
    ]
    if not changed and contents["data"] != recipe.images:
        changed = ["source has other images than before (their number or names differ)"]
    if changed:
        more = f" ({len(changed) - 1} more settings differ)" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{more}: {path} comes from another run; use the old values to resume "
            "it, or another --workdir (and init_from, to start from its weights)"
        )


def to_checkpoint(
    state: TrainState, process: Process, recipe: Recipe, history: History
) -> dict[str, Any]:
    """Returns the contents of a checkpoint (`checkpoint.KEYS`).

    Args:
      state: after its last step.
      process: of this rank.
      recipe: of the run.
      history: steps, and the scores after them, by name.
    """
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return {
        "step": state.step,
        "parameters": state.parameters,
        "buffers": state.buffers,
        "optimizer": {
            **state.moments,
            "updates": state.updates,
            "loss_scale": state.loss_scale,
            "good_steps": state.good_steps,
        },
        "rng": rng,
        "config": process.config,
        "settings": recipe.settings,
        "versions": {
            "jigclu": jigclu.__version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        "data": recipe.images,
        "scores": history,
        "machine": process.machine.to_checkpoint(),
    }


def started_precision(contents: Mapping[str, Any]) -> str:
    """Returns the precision of the run that wrote a checkpoint."""
    return str(contents["machine"]["precision"][0])


def restore(
    state: TrainState, contents: Mapping[str, Any], path: Path, precision: str
) -> TrainState:
    """Copies a checkpoint into the tensors of a state; returns it at the checkpoint's step.

    Args:
      state: before the first step.
      contents: of the checkpoint.
      path: of the checkpoint, for messages.
      precision: of the resumed run. If it differs from the checkpoint's, the loss scale
        is initialized anew.

    Raises:
      UserError: the checkpoint contains another network.
    """
    optimizer = contents["optimizer"]
    for own, found in (
        (state.parameters, contents["parameters"]),
        (state.buffers, contents["buffers"]),
        *((values, optimizer[name]) for name, values in state.moments.items()),
    ):
        copy(own, load_strict(found, own, path))
    torch.set_rng_state(contents["rng"]["cpu"].cpu())
    if torch.cuda.is_available() and "cuda" in contents["rng"]:
        torch.cuda.set_rng_state(contents["rng"]["cuda"].cpu())
    # Version 0.3.0 did not count updates, which none of its optimizers used.
    updates = optimizer.get("updates", state.updates)
    state = state._replace(step=contents["step"], updates=updates)
    if started_precision(contents) != precision:
        return state
    return state._replace(loss_scale=optimizer["loss_scale"], good_steps=optimizer["good_steps"])


def copy(to: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copies values into the tensors with the same names."""
    with torch.no_grad():
        for name, tensor in to.items():
            tensor.copy_(values[name])
