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
from jigclu.system.on_resume import Rule
from jigclu.training import checkpoint
from jigclu.training.process import Process
from jigclu.training.state import TrainState

History = list[tuple[int, dict[str, float]]]

# Settings that checkpoints of version 0.3.0 lack, with the values that its runs had, and values
# that it spelled otherwise.
_SINCE_0_3_0 = {
    "optimizer.nesterov": "False",
    "optimizer.decay_norms_and_biases": "True",
    "method.siblings": "'anywhere'",
    "method.queue_size": "0",
    "average_momentum": "0.0",
    "method.single_every": "0",
    "method.projection_layers": "2",
    "method.projection_norm": "False",
}
_RENAMED = {"'AugmentationSettings'": "'ColorAugmentation'"}
# It did not record the task, which these settings tell.
_TASKS_OF_0_3_0 = {
    "method": "pre-training",
    "learning_rates": "linear-evaluation",
    "head_learning_rate": "fine-tuning",
    "dilated_stages": "segmentation",
}
_TASK = "task"
# Nor did it record what the initial weights were.
_WEIGHTS = "init_from.content"
_NO_SETTINGS = (_TASK, _WEIGHTS)


class Recipe(NamedTuple):
    """What determines what a run learns; see `settings` for the values and `Rule` for the rules.

    task: its title.
    settings: values that are compared on resume, by their path from the task.
    rules: of the settings that a resumed run may change, by the same path.
    images: fingerprint of the training images.
    weights: `initial_weights.fingerprint` of the initial weights.
    """

    task: str
    settings: dict[str, str]
    rules: dict[str, Rule]
    images: str
    weights: str


class Start(NamedTuple):
    """Start of this process.

    state: before its first step.
    history: earlier scores.
    message: where the state comes from; "" for a new run with random weights.
    changes: what a resumed run changed, in one line; "" for nothing.
    recipe: of the run from here on, with the weights from which it began.
    is_reconfigured: whether a resumed run has other bindings than before.
    """

    state: TrainState
    history: History
    message: str
    changes: str
    recipe: Recipe
    is_reconfigured: bool


def start(
    path: Path | None,
    init_from: str | None,
    process: Process,
    state: TrainState,
    recipe: Recipe,
    initialize: Callable[[str], str],
) -> Start:
    """Fills the initial state of this process.

    Args:
      path: checkpoint to resume, or None to start a new run.
      init_from: initial weights of a new run, or None.
      process: of this rank.
      state: before the first step; its tensors are filled in place.
      recipe: of the run.
      initialize: loads initial weights into the state; returns a message.
    """
    if path is None:
        message = "" if init_from is None else initialize(init_from)
        return Start(state, [], message, "", recipe, False)
    contents, precision = checkpoint.load(path, process.device), process.machine.precision.value
    state = restore(state, contents, path, precision)
    history = [(step, dict(scores)) for step, scores in contents["scores"]]
    message = f"resumed from {path} at step {state.step}"
    changes = describe_changes(contents, recipe, precision)
    recipe = recipe._replace(weights=contents["settings"].get(_WEIGHTS, ""))
    is_reconfigured = contents["config"] != process.config
    return Start(state, history, message, changes, recipe, is_reconfigured)


def check_same_run(
    contents: Mapping[str, Any], recipe: Recipe, path: Path, new_run: str, is_finished: bool
) -> None:
    """Raises UserError unless a run may resume a checkpoint.

    Args:
      contents: of the checkpoint.
      recipe: of the run that is to resume.
      path: of the checkpoint, for messages.
      new_run: flags that start a new run from the checkpoint.
      is_finished: whether no steps remain that a changed setting could affect.
    """
    task = _task(contents["settings"])
    if task != recipe.task:
        raise UserError(
            f"{path} is a {task} checkpoint, which a {recipe.task} run cannot resume; start a new "
            f"run from its encoder by {new_run}"
        )
    is_moved = recipe.weights and recipe.weights == contents["settings"].get(_WEIGHTS)
    accepted = {*Rule} - {Rule.FIXED}
    accepted -= {Rule.LOGGED} if is_finished else set()
    accepted -= set() if is_moved else {Rule.SAME_WEIGHTS}
    changed = [
        f"{name} was {before} and is {now}"
        for name, before, now in _differences(contents["settings"], recipe)
        if recipe.rules.get(name, Rule.FIXED) not in accepted
    ]
    if not changed and contents["data"] != recipe.images:
        changed = ["source has other images than before (their number or names differ)"]
    if changed:
        more = f" ({len(changed) - 1} more settings differ)" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{more}: {path} comes from another run; use the old values to resume "
            f"it, another --workdir for a new run, or start one from its encoder by {new_run}"
        )


def describe_changes(contents: Mapping[str, Any], recipe: Recipe, precision: str) -> str:
    """Describes the accepted changes of a resumed run in one line; "" if there are none.

    Args:
      contents: of the checkpoint.
      recipe: of the resumed run, which has passed `check_same_run`.
      precision: of the resumed run.
    """
    differences = _differences(contents["settings"], recipe)
    changes = []
    for name, before, now in differences:
        ignored = recipe.rules.get(name) is Rule.INITIAL
        effect = ", which has no effect on a resumed run" if ignored else ""
        changes.append(f"{name} was {before} and is {now}{effect}")
    began, named = contents["settings"].get(_WEIGHTS), [name for name, *_ in differences]
    if began and recipe.weights not in ("", began) and "init_from" not in named:
        changes.append("init_from has other weights now, which have no effect on a resumed run")
    started = started_precision(contents)
    if started != precision:
        changes.append(f"precision was {started!r} and is {precision!r}")
    return f"changed since step {contents['step']}: {'; '.join(changes)}" if changes else ""


def _differences(recorded: Mapping[str, str], recipe: Recipe) -> list[tuple[str, str, str]]:
    """Returns path, earlier and present value of the settings that differ."""
    now, rules = recipe.settings, recipe.rules
    before = {name: value for name, value in _SINCE_0_3_0.items() if name in now}
    before |= {name: _RENAMED.get(value, value) for name, value in recorded.items()}
    # Settings that another version compared, but this one need not, and the other way round.
    names = [name for name in now if name in before or name not in rules]
    names += [name for name in before if name not in now and name not in (*rules, *_NO_SETTINGS)]
    pairs = ((name, before.get(name, "absent"), now.get(name, "absent")) for name in names)
    return [(name, earlier, present) for name, earlier, present in pairs if earlier != present]


def _task(recorded: Mapping[str, str]) -> str:
    """Returns the title of the task that wrote a checkpoint."""
    own = next((title for name, title in _TASKS_OF_0_3_0.items() if name in recorded), "unknown")
    return recorded.get(_TASK, own)


def to_checkpoint(
    state: TrainState, process: Process, recipe: Recipe, history: History
) -> dict[str, Any]:
    """Returns the contents of a checkpoint (`checkpoint_contents.KEYS`).

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
        "settings": {_TASK: recipe.task, _WEIGHTS: recipe.weights} | recipe.settings,
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
        *((values, optimizer.get(name, {})) for name, values in state.moments.items()),
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
