"""Weights of any origin, translated to the names of this project.

Checkpoints of this project, the published code, torchvision, timm, MoCo and SimSiam are
recognized automatically. Reading a file never runs code in it.
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
from jigclu.system.errors import UserError, naming

# Prefixes that other trainers put before torchvision's names; the first match is removed.
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
# All layers of a ResNet with parameters; other trainers keep their heads beside them.
_LAYERS = ("encoder.conv1.", "encoder.bn1.", "encoder.layer")


class LoadReport(NamedTuple):
    """Outcome for every key when weights are matched with a model."""

    loaded: list[str]
    missing: list[str]  # in the model, not in the file
    unexpected: list[str]  # in the file, not in the model
    mismatched: list[str]  # in both, with different shapes: "key [file] instead of [model]"

    def summary(self) -> str:
        """Returns several lines: counts of loaded tensors, and names of all others."""
        parts = Counter(".".join(key.split(".")[:2]) for key in self.loaded)
        counts = ", ".join(f"{part} {count}" for part, count in parts.items())
        lines = [f"loaded {len(self.loaded)} tensors from the file: {counts}"]
        for title, keys in (
            ("missing in the file, left at their initial values", self.missing),
            ("with another shape in the file, left at their initial values", self.mismatched),
            ("unknown to the model, ignored", self.unexpected),
        ):
            if keys:
                lines.append(f"{len(keys)} {title}:")
                lines.extend(f"  {key}" for key in keys)
        return "\n".join(lines)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a file under our names, on the CPU; see `select_weights`.

    Raises:
      UserError: the file is missing, unreadable, or holds no weights.
    """
    return select_weights(tensor_files.read(path, "cpu"), path)


def select_weights(contents: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Selects the weights from the contents of a file, and renames them to our names.

    Args:
      contents: of the file, from `tensor_files.read`.
      path: path of the file, for the message.

    Returns:
      Tensors named `encoder.<torchvision's name>`, or `fc_clu.…` and `fc_loc.…`. Batch
      counters (`num_batches_tracked`), which our `BatchNorm` does not have, are left out.

    Raises:
      UserError: the file holds no weights.
    """
    if "parameters" in contents:
        weights = _tensors(contents["parameters"]) | _tensors(contents.get("buffers"))
    else:
        weights = _rename(_tensors(contents.get("state_dict", contents)))
    if not weights:
        keys = [str(key) for key in contents]
        raise UserError(
            f"{path} holds no weights; expected a checkpoint of JigClu, or a state_dict with "
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
    # MoCo also stores a key encoder; the order of the table prefers the query encoder.
    return next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}conv1.weight" in names), "")


def _our_name(name: str) -> str:
    return name if name.startswith(HEADS) else f"encoder.{name}"


def match_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], LoadReport]:
    """Matches the weights of a file with a model; heads that do not fit keep their values.

    Args:
      found: weights under our names, from `read_weights`.
      expected: parameters and buffers of the model.
      path: path of the file, for the message.

    Returns:
      A dict with exactly the keys, dtypes and devices of expected, and the report.

    Raises:
      UserError: a tensor of the encoder is missing or has another shape.
    """
    missing, unexpected, mismatched = state_dicts.differences(expected, found)
    loaded = [key for key in expected if key in found and found[key].shape == expected[key].shape]
    of_encoder = {key: value for key, value in expected.items() if key.startswith("encoder.")}
    wrong = state_dicts.describe_mismatch(
        of_encoder, {key: found[key] for key in of_encoder if key in found}
    )
    if wrong:
        raise UserError(f"{path} does not hold this encoder: {wrong}; {_remedy(found)}")
    values = {
        key: found[key].to(value) if key in loaded else value for key, value in expected.items()
    }
    return values, LoadReport(loaded, missing, unexpected, mismatched)


def recognize_encoder(weights: Mapping[str, Tensor]) -> tuple[str, bool] | None:
    """Returns the name and small_stem, for `create_encoder`, of the encoder with these weights.

    Args:
      weights: under our names, from `read_weights`; heads are ignored.

    Returns:
      None unless the weights are those of one complete encoder.
    """
    shapes = {key: value.shape for key, value in weights.items() if key.startswith(_LAYERS)}
    for small_stem, name in itertools.product((False, True), encoder_names()):
        with torch.device("meta"):
            tensors = encoder_tensors(create_encoder(name, small_stem))
        if shapes == {key: value.shape for key, value in tensors.items()}:
            return name, small_stem
    return None


def _remedy(found: Mapping[str, Tensor]) -> str:
    """Returns what to do about weights of another encoder, which it names if it is known."""
    recognized = recognize_encoder(found)
    if recognized is None:
        return "use a file that holds the whole encoder"
    name, small_stem = recognized
    return f"it holds encoder = {name!r} and small_stem = {small_stem}: bind these"


def check_encoder(init_from: str | None, encoder: str, small_stem: bool) -> None:
    """Checks that the encoder exists, and that a file holds its weights.

    Args:
      init_from: file of weights; None checks only the name of the encoder.
      encoder, small_stem: arguments of `create_encoder`.

    Raises:
      UserError: the encoder is unknown, or the file does not hold all of its weights.
    """
    with torch.device("meta"):
        tensors = encoder_tensors(create_encoder(encoder, small_stem))
    if init_from is not None:
        with naming("init_from"):
            match_weights(read_weights(Path(init_from)), tensors, Path(init_from))


def load_into(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Copies the weights of a file into tensors with our names.

    Returns:
      A message of several lines: what was loaded, and the names of what was not.

    Raises:
      UserError: the file does not hold all weights of the encoder.
    """
    values, report = match_weights(read_weights(path), tensors, path)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
    return f"initial weights of {path}: {report.summary()}"
