"""Bindings that gin files leave to the rules of `tasks.folder_recipe`.

Each name that is bound to the macro %CHOSEN gets the value that the rules choose. A resumed run
keeps the choices in its checkpoint, even on another machine.
"""

import ast
import copy
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gin
import torch

from jigclu.config import sizes
from jigclu.config.registry import check_type
from jigclu.models.weights import Architecture
from jigclu.system import collectives
from jigclu.system.device import launched_processes, local_device, process_group
from jigclu.system.errors import UserError, naming
from jigclu.system.memory import device_memory
from jigclu.tasks import folder_recipe
from jigclu.tasks.folder_recipe import PLACES, Choice, Facts
from jigclu.training import checkpoint, initial_weights

MARKER = "%CHOSEN"
_MACRO = re.compile(r"%(\w+)")
_RECORD = re.compile(r"^(\S+) = (.*)  # chosen: (.*)$", re.MULTILINE)


class Chosen(NamedTuple):
    """Choices of a run.

    choices: in the order of the rules.
    kept_from: checkpoint from which some were read, because it is resumed; else None.
    """

    choices: list[Choice]
    kept_from: Path | None

    def bindings(self) -> dict[str, str]:
        """Returns the chosen values by name."""
        return {choice.name: choice.value for choice in self.choices}

    def summary(self) -> list[str]:
        """Returns the lines of the plan."""
        if not self.choices:
            return []
        kept = f", as in {self.kept_from}" if self.kept_from else ""
        lines = [f"  {item.name}: {item.value} ({item.reason})" for item in self.choices]
        return [f"chosen, because it is not bound{kept}:", *lines]

    def annotate(self, resolved: str) -> str:
        """Adds each choice with its reason to the bindings of a run, one per line."""
        bindings = {line.partition(" = ")[0]: line for line in resolved.splitlines()}
        for name, value, reason in self.choices:
            line = bindings.get(name, f"{name} = {value}")
            bindings[name] = f"{line}  # chosen: {reason}"
        return "\n".join(bindings.values())


def choose(given: Mapping[str, str], workdir: Path | None) -> Chosen:
    """Chooses the values that are left to the rules, and makes gin read them.

    Args:
      given: values of all bindings, in gin's syntax.
      workdir: of the run, which may hold a checkpoint to resume; None for a new run.

    Raises:
      UserError: the rules do not know a name, or there are no images that can be read.
    """
    left = [name for name, value in given.items() if value == MARKER]
    unknown = [name for name in left if name not in folder_recipe.NAMES]
    if unknown:
        raise UserError(f"{unknown[0]} is {MARKER}, but no rule chooses it: bind it to a value")
    if not left:
        return Chosen([], None)
    known = {name: _literal(value, given) for name, value in given.items()}
    path = _checkpoint(known, workdir)
    _check_bound(known, given)
    choices = [] if path is None else _read_choices(path, left)
    kept_from = path if choices else None
    _bind(choices, known, left)
    for rules in (_choose_images, _choose_training):
        new = [choice for choice in rules(known, left) if choice.name in left]
        _bind(new, known, left)
        choices += new
    unknown = [name for name in left if name.startswith("knn_evaluator.")]
    if unknown and _reads(known, "pretrain.evaluators", "knn_evaluator"):
        raise UserError(
            f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} {MARKER}, which is "
            "chosen only for images in class folders and an evaluation that is not bound: bind "
            "all of them, or pretrain.evaluators = ()"
        )
    return Chosen(choices, kept_from)


def _check_bound(known: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Raises UserError if a value from which the rules start has the wrong type."""
    for name in (*folder_recipe.RULES, "pretrain.init_from"):
        if known.get(name, MARKER) == MARKER:
            continue
        if name == "SIZE":
            sizes.pixels(name, given[name])
        else:
            check_type(name, known[name])


def _reads(known: Mapping[str, Any], binding: str, name: str) -> bool:
    """Returns whether a binding refers to a configurable."""
    return f"@{name}()" in str(known.get(binding))


def _bind(choices: Iterable[Choice], known: dict[str, Any], left: list[str]) -> None:
    """Makes gin read choices, and moves their names from those that are left to the known ones."""
    for choice in choices:
        gin.parse_config(f"{choice.name} = {choice.value}")
        known[choice.name] = _literal(choice.value, {})
        left.remove(choice.name)


def _choose_images(known: Mapping[str, Any], left: Collection[str]) -> list[Choice]:
    if known["pretrain.source"] not in (MARKER, *folder_recipe.SOURCES):
        return [Choice("pretrain.evaluators", "()", "pretrain.source is bound")]
    if "DATA" not in known:
        raise UserError("DATA is not bound; bind it to the folder of the images")
    evaluates = known["pretrain.evaluators"] in (MARKER, folder_recipe.KNN)
    with naming("DATA"):
        return folder_recipe.choose_images(str(known["DATA"]), evaluates)


def _choose_training(known: Mapping[str, Any], left: Collection[str]) -> list[Choice]:
    for binding, name in (("pretrain.evaluators", "knn_evaluator"), ("pretrain.method", "jigsaw")):
        if not _reads(known, binding, name):
            left = [other for other in left if not other.startswith(f"{name}.")]
    if not any(name in left for name in folder_recipe.RULES):
        return []
    # A copy of a reference is the object to which it refers.
    source = copy.deepcopy(gin.query_parameter("pretrain.source"))
    check_type("pretrain.source", source)
    device = local_device(known["compute.device"])
    weights = _initial_weights(known)
    with naming("DATA"):
        facts = Facts(
            images=len(source),
            side=folder_recipe.typical_side(source),
            on_gpu=device.type == "cuda",
            memory=least_memory(device),
            processes=launched_processes(),
            weights=weights,
        )
        return folder_recipe.choose_training(facts, known, left)


def _initial_weights(known: Mapping[str, Any]) -> Architecture | None:
    """Returns the encoder of the initial weights, without a download."""
    if known["pretrain.init_from"] is None:
        return None
    with naming("pretrain.init_from"):
        return initial_weights.architecture(known["pretrain.init_from"], known["pretrain.encoder"])


def least_memory(device: torch.device) -> int:
    """Returns the memory of the smallest device of all ranks, in bytes: all choose alike."""
    with process_group(device):
        own = torch.tensor([device_memory(device)], device=device)
        return int(collectives.gather(own, 0).min())


def _checkpoint(known: Mapping[str, Any], workdir: Path | None) -> Path | None:
    """Returns the checkpoint that a run resumes."""
    found = None if workdir is None else checkpoint.latest(workdir)
    named = known.get("pretrain.resume_from")
    return found or (None if named is None else Path(named))


def _read_choices(path: Path, left: Collection[str]) -> list[Choice]:
    choices = [Choice(*record) for record in _RECORD.findall(checkpoint.peek(path)["config"])]
    # The folder may have moved.
    return [item for item in choices if item.name in left and item.name not in PLACES]


def _literal(text: str, macros: Mapping[str, str]) -> Any:
    """Returns a value that gin would print as a text, or the text of a reference."""
    text = _MACRO.sub(lambda match: macros.get(match[1], match[0]), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
