"""Weights of any origin, under the names of this project.

Checkpoints of this project, of the published code, of torchvision, timm, MoCo and
SimSiam: the format is recognized by itself, and no code in a file ever runs.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jigclu.models import state_dicts
from jigclu.models.encoder import create_encoder, encoder_names, encoder_tensors
from jigclu.system import tensor_files
from jigclu.system.errors import UserError

# What other trainers put before torchvision's names; the first that fits is stripped.
ENCODER_PREFIXES = (
    "module.encoder_q.",  # MoCo
    "module.base_encoder.",  # MoCo v3
    "module.encoder.",  # JigClu, SimSiam
    "encoder.",  # the same without DistributedDataParallel
    "module.",  # torchvision under DistributedDataParallel
    "backbone.",  # whole detectors and classifiers of many libraries
    "",  # torchvision
)
HEADS = ("fc_clu.", "fc_loc.")


class LoadReport(NamedTuple):
    """What became of every key when weights met a model."""

    loaded: list[str]
    missing: list[str]  # in the model, not in the file
    unexpected: list[str]  # in the file, not in the model
    mismatched: list[str]  # in both, with different shapes: "key [file] instead of [model]"

    def summary(self) -> str:
        """Returns several lines for people: what was loaded, by part, and by name what was not."""
        parts = Counter(".".join(key.split(".")[:2]) for key in self.loaded)
        told = ", ".join(f"{part} {count}" for part, count in parts.items())
        lines = [f"loaded {len(self.loaded)} tensors from the file: {told}"]
        for title, keys in (
            ("left at their initial values, missing in the file", self.missing),
            ("left at their initial values, of another shape in the file", self.mismatched),
            ("ignored, unknown to the model", self.unexpected),
        ):
            if keys:
                lines.append(f"{len(keys)} {title}:")
                lines.extend(f"  {key}" for key in keys)
        return "\n".join(lines)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a file under our names, on the CPU.

    Returns:
      Tensors named `encoder.<torchvision's name>`, or `fc_clu.…` and `fc_loc.…`;
      counters of batches (`num_batches_tracked`), which our BN has not, are left out.

    Raises:
      UserError: no such file, unreadable, or without tensors.
    """
    contents = tensor_files.read(path, "cpu")
    if "parameters" in contents:
        weights = _tensors(contents["parameters"]) | _tensors(contents.get("buffers"))
    else:
        weights = _rename(_tensors(contents.get("state_dict", contents)))
    if not weights:
        keys = [str(key) for key in contents]
        raise UserError(
            f"{path} holds no weights; expected a checkpoint of JigClu, or a state_dict of "
            f"torchvision's names; its keys are {', '.join(keys[:3]) or 'none'}"
        )
    return weights


def _tensors(values: Any) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        return {}
    return {
        key: value
        for key, value in values.items()
        if isinstance(key, str)
        and isinstance(value, Tensor)
        and not key.endswith("num_batches_tracked")
    }


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def match_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], LoadReport]:
    """Takes from found what fits the model, and of the heads the rest from the model.

    Args:
      found: weights under our names, as `read_weights` gives them.
      expected: parameters and buffers of the model.
      path: of the file, for messages.

    Returns:
      A dict with exactly the keys, dtypes and devices of expected, and the report.

    Raises:
      UserError: not every tensor of the encoder is there, in its shape.
    """
    missing, unexpected, mismatched = state_dicts.differences(expected, found)
    loaded = [key for key in expected if key in found and found[key].shape == expected[key].shape]
    of_encoder = {key: value for key, value in expected.items() if key.startswith("encoder.")}
    wrong = state_dicts.describe_mismatch(
        of_encoder, {key: found[key] for key in of_encoder if key in found}
    )
    if wrong:
        raise UserError(f"{path} does not hold this encoder: {wrong}; {_held_encoder(found)}")
    values = {
        key: found[key].to(value) if key in loaded else value for key, value in expected.items()
    }
    return values, LoadReport(loaded, missing, unexpected, mismatched)


def _held_encoder(found: Mapping[str, Tensor]) -> str:
    """Returns which encoder a file holds, and what to do about it."""
    keys = {key for key in found if key.startswith("encoder.") and ".fc." not in key}
    for name, small_stem in itertools.product(encoder_names(), (False, True)):
        with torch.device("meta"):
            tensors = encoder_tensors(create_encoder(name, small_stem))
        if keys == set(tensors) and all(found[key].shape == tensors[key].shape for key in keys):
            return f"it holds that of encoder = {name!r} and small_stem = {small_stem}: bind these"
    return "give a file that holds the whole of it"


def check_encoder(init_from: str | None, encoder: str, small_stem: bool) -> None:
    """Makes sure that there is such an encoder, and that a file holds it.

    Args:
      init_from: file of weights; None: nothing to look into.
      encoder, small_stem: of `create_encoder`.

    Raises:
      UserError: an unknown encoder, no weights, or not all of the encoder.
    """
    with torch.device("meta"):
        tensors = encoder_tensors(create_encoder(encoder, small_stem))
    if init_from is not None:
        match_weights(read_weights(Path(init_from)), tensors, Path(init_from))


def load_into(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Copies the weights of a file into tensors of our names.

    Returns:
      What to tell of it: what was loaded, and by name what was not.

    Raises:
      UserError: no weights, or not all of the encoder.
    """
    values, report = match_weights(read_weights(path), tensors, path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
    return f"initial weights of {path}: {report.summary()}"
