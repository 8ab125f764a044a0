"""The encoder in a file of weights of any origin, under the names of this project.

Files differ in the dicts around the tensors and in the prefix of their names: "module." of
DistributedDataParallel, "_orig_mod." of torch.compile, "backbone." of a larger model. The encoder
is the one dict and prefix below which all layers of a ResNet are found, or those of the network of
timm that the task or the file names.
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jigclu.models import state_dicts, timm_networks
from jigclu.models.encoder import create_encoder, encoder_names, is_of_timm
from jigclu.system import tensor_files
from jigclu.system.errors import UserError

HEADS = ("fc_clu.", "fc_loc.")
# Key of our entry in the metadata of a .safetensors file: a JSON object that describes an export.
METADATA_KEY = "jigclu"
# All layers of a ResNet with parameters; other trainers keep their heads beside them.
_LAYERS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
# A name that every ResNet has, after any prefix.
_ANCHOR = re.compile(r"((?:.+\.)?)layer[1-4]\.0\.conv1\.weight")
_MAX_DEPTH = 4  # Of dicts in a file.
# Name of the average that pre-training keeps of the encoder (`pretrain.average_momentum`), which is
# used in place of the trained encoder.
AVERAGED = "averaged_encoder"
# Copies that MoCo and MoCo v3 keep of the encoder that they train; the trained one is used.
_MOMENTUM_COPIES = ("encoder_k", "momentum_encoder")


class Architecture(NamedTuple):
    """Arguments of `create_encoder`."""

    encoder: str
    small_stem: bool

    def __str__(self) -> str:
        return f"encoder = {self.encoder!r} and small_stem = {self.small_stem}"


class Weights(NamedTuple):
    """Weights of a file under our names.

    architecture: of the encoder; a ResNet is recognized from names and shapes.
    tensors: the encoder's as `encoder.<torchvision's or timm's name>`, our heads as `fc_clu.…` and
      `fc_loc.…`, and all others of the same dict as in the file. Batch counters
      (`num_batches_tracked`), which our `BatchNorm` does not have, are left out.
    is_averaged: whether the encoder is the moving average that pre-training keeps.
    """

    architecture: Architecture
    tensors: dict[str, Tensor]
    is_averaged: bool

    def __str__(self) -> str:
        return f"{self.architecture}{', averaged over training steps' if self.is_averaged else ''}"


class _Candidate(NamedTuple):
    """A place in a file that may hold the layers of an encoder.

    address: keys of the dicts and prefix, joined by dots: "model_ema.module".
    prefix: of the names of the encoder in its dict; empty, or ends with a dot.
    tensors: all tensors of the dict.
    named: network of timm that the layers should be; None for any ResNet.
    """

    address: str
    prefix: str
    tensors: dict[str, Tensor]
    named: Architecture | None

    @property
    def layers(self) -> dict[str, Tensor]:
        """The tensors of the encoder under torchvision's or timm's names."""
        return {
            key.removeprefix(self.prefix): value
            for key, value in self.tensors.items()
            if key.startswith(self.prefix) and _is_layer(key.removeprefix(self.prefix), self.named)
        }

    @property
    def is_averaged(self) -> bool:
        """Whether the encoder is the moving average that pre-training keeps."""
        return self.address.endswith(AVERAGED)

    def equals(self, other: "_Candidate") -> bool:
        """Returns whether both hold the same encoder, as aliases of one module do."""
        layers, others = self.layers, other.layers
        return layers.keys() == others.keys() and all(
            torch.equal(value, others[key]) for key, value in layers.items()
        )

    def to_weights(self) -> Weights:
        """Returns the weights under our names; the encoder must be complete."""
        architecture = recognize(self.layers, self.named)
        assert architecture is not None
        tensors = {self._our_name(key): value for key, value in self.tensors.items()}
        # Another encoder in the same dict may have our names.
        tensors |= {f"encoder.{name}": value for name, value in self.layers.items()}
        return Weights(architecture, tensors, self.is_averaged)

    def _our_name(self, key: str) -> str:
        name = key.removeprefix(self.prefix) if key.startswith(self.prefix) else ""
        if _is_layer(name, self.named):
            return f"encoder.{name}"
        return name if name.startswith(HEADS) else key


class LoadReport(NamedTuple):
    """Outcome for every key when weights are matched with a model."""

    loaded: list[str]
    missing: list[str]  # in the model, not in the file
    unexpected: list[str]  # in the file, not in the model; empty for an encoder without heads
    mismatched: list[str]  # in both, with different shapes: "key [file] instead of [model]"

    def summary(self) -> str:
        """Returns several lines: counts of loaded tensors, and the first names of all others."""
        parts = Counter(".".join(key.split(".")[:2]) for key in self.loaded)
        counts = ", ".join(f"{part} {count}" for part, count in parts.items())
        lines = [f"loaded {len(self.loaded)} tensors from the file: {counts}"]
        for title, keys in (
            ("missing in the file, left at their initial values", self.missing),
            ("with another shape in the file, left at their initial values", self.mismatched),
            ("unknown to the model, ignored", self.unexpected),
        ):
            if keys:
                lines.append(f"{len(keys)} {title}: {state_dicts.first(keys)}")
        return "\n".join(lines)


def select_weights(
    contents: Mapping[Any, Any],
    path: Path,
    address: str | None = None,
    encoder: str | None = None,
) -> Weights:
    """Selects the weights of the encoder from the contents of a file.

    Args:
      contents: of the file, from `tensor_files.read` or `tensor_files.peek`.
      path: path of the file, for messages.
      address: of the encoder in a file of several: keys of dicts and prefix, joined by dots. None
        selects the average that pre-training keeps, or else the only one.
      encoder: that is expected. Only a network of timm matters, because it is not recognized from
        its weights; None or another name selects the one that the file names, else a ResNet.

    Raises:
      UserError: the file has no complete encoder, several, or none at the address.
    """
    name = encoder if encoder is not None and is_of_timm(encoder) else _recorded_network(contents)
    named = None if name is None else Architecture(name, small_stem=False)
    candidates = list(_candidates(contents, named))
    complete = [item for item in candidates if recognize(item.layers, named)]
    if not complete:
        raise UserError(f"{path} holds no complete encoder: {_lack(contents, candidates, named)}")
    if address is None:
        return _only(complete, path).to_weights()
    addressed = [item for item in complete if item.address == address]
    if not addressed:
        raise UserError(
            f"{path} has no encoder named {address!r}; choose from {_spell(complete, path)}"
        )
    return addressed[0].to_weights()


def _recorded_network(contents: Mapping[Any, Any]) -> str | None:
    """Returns the network of timm that a file names, or None.

    Our checkpoints name it in their settings, our exports in their metadata, and files of timm's
    training script by `arch`.
    """
    exported = _mapping(contents.get(tensor_files.METADATA)).get(METADATA_KEY, "{}")
    names = [
        str(_mapping(contents.get("settings")).get("encoder")).strip("'"),
        str(_mapping(json.loads(exported)).get("encoder")),
    ]
    arch = contents.get("arch")
    if isinstance(arch, str) and arch not in encoder_names() and timm_networks.exists(arch):
        names.append(timm_networks.PREFIX + arch)
    return next(filter(is_of_timm, names), None)


def _candidates(contents: Mapping[Any, Any], named: Architecture | None) -> Iterator[_Candidate]:
    anchor = _ANCHOR
    if named is not None:
        anchor = re.compile(rf"((?:.+\.)?){re.escape(next(iter(_layers(named))))}")
    for keys, tensors in _dicts_of_tensors(contents, ()):
        for prefix in dict.fromkeys(match[1] for match in map(anchor.fullmatch, tensors) if match):
            yield _Candidate(".".join([*keys, prefix]).strip("."), prefix, tensors, named)


def _dicts_of_tensors(
    values: Mapping[Any, Any], keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yields all dicts of tensors in a dict, with the keys that lead to them."""
    if "parameters" in values:  # A checkpoint of this project keeps the two apart.
        values = _mapping(values["parameters"]) | _mapping(values.get("buffers"))
    yield (
        keys,
        {
            key: value
            for key, value in values.items()
            if isinstance(key, str)
            and isinstance(value, Tensor)
            and not key.endswith("num_batches_tracked")
        },
    )
    for key, value in values.items():
        if isinstance(value, Mapping) and len(keys) < _MAX_DEPTH:
            yield from _dicts_of_tensors(value, (*keys, str(key)))


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _only(complete: list[_Candidate], path: Path) -> _Candidate:
    """Returns the averaged encoder of a file, or else the only one.

    Momentum copies and aliases do not count.
    """
    averaged = [item for item in complete if item.is_averaged]
    trained = [item for item in complete if not item.address.endswith(_MOMENTUM_COPIES)]
    first, *others = averaged or trained or complete
    if not all(first.equals(other) for other in others):
        raise UserError(
            f"{path} holds {1 + len(others)} encoders; choose one of "
            f"{_spell([first, *others], path)}"
        )
    return first


def _spell(candidates: list[_Candidate], path: Path) -> str:
    return ", ".join(repr(f"{path}:{item.address}") for item in candidates)


def _lack(
    contents: Mapping[Any, Any], candidates: list[_Candidate], named: Architecture | None
) -> str:
    """Returns what a file without a complete encoder holds instead."""
    if candidates:
        most = max(candidates, key=lambda item: len(item.layers))
        nearest = min(_architectures(named), key=lambda item: _distance(most.layers, _layers(item)))
        lack = state_dicts.describe_mismatch(_layers(nearest), most.layers)
        return (
            f"compared with {nearest.encoder}, {lack}; found {state_dicts.first([*most.tensors])}"
        )
    names = [key for _, tensors in _dicts_of_tensors(contents, ()) for key in tensors]
    names = names or [str(key) for key in contents if key != tensor_files.METADATA]
    expected = (
        "torchvision's names of a ResNet, such as conv1.weight, after any prefix, or encoder bound "
        "to 'timm/<name>' for a network of timm"
    )
    if named is not None:
        first = next(iter(_layers(named)))
        expected = f"timm's names of {named.encoder}, such as {first}, after any prefix"
    return f"expected {expected}; found {state_dicts.first(names) or 'none'}"


def _distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    return sum(map(len, state_dicts.differences(expected, found)))


def recognize(
    layers: Mapping[str, Tensor], named: Architecture | None = None
) -> Architecture | None:
    """Returns the architecture that has exactly these names and shapes.

    Args:
      layers: of an encoder, under torchvision's or timm's names, without batch counters.
      named: the only architecture to consider; None for all ResNets.
    """
    shapes = {key: value.shape for key, value in layers.items()}
    for architecture in _architectures(named):
        if shapes == {key: value.shape for key, value in _layers(architecture).items()}:
            return architecture
    return None


def _architectures(named: Architecture | None) -> Iterator[Architecture]:
    if named is not None:
        yield named
        return
    for small_stem, name in itertools.product((False, True), encoder_names()):
        yield Architecture(name, small_stem)


@functools.cache
def _layers(architecture: Architecture) -> dict[str, Tensor]:
    """Returns the parameters and buffers of an encoder, without memory for their values."""
    with torch.device("meta"):
        return create_encoder(*architecture).state_dict()


def _is_layer(name: str, named: Architecture | None) -> bool:
    """Returns whether a tensor belongs to the named network of timm; None: to a ResNet."""
    return name.startswith(_LAYERS) if named is None else name in _layers(named)


def match_weights(
    found: Weights, expected: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], LoadReport]:
    """Matches the weights of a file with a model; heads that do not fit keep their values.

    Args:
      found: from `select_weights`.
      expected: parameters and buffers of the model.
      path: path of the file, for the message.

    Returns:
      A dict with exactly the keys, dtypes and devices of expected, and the report.

    Raises:
      UserError: the file holds another encoder, or weights that are not finite.
    """
    tensors = found.tensors
    encoder = {key: value for key, value in expected.items() if key.startswith("encoder.")}
    named = found.architecture if is_of_timm(found.architecture.encoder) else None
    own = {
        key: value
        for key, value in tensors.items()
        if key.startswith("encoder.") and _is_layer(key.removeprefix("encoder."), named)
    }
    wrong = state_dicts.describe_mismatch(encoder, own)
    if wrong:
        raise UserError(
            f"{path} holds another encoder, {found.architecture}: bind these, or both to 'auto' "
            f"({wrong})"
        )
    missing, unexpected, mismatched = state_dicts.differences(expected, tensors)
    loaded = [
        key for key in expected if key in tensors and tensors[key].shape == expected[key].shape
    ]
    broken = [key for key in loaded if not bool(tensors[key].isfinite().all())]
    if broken:
        raise UserError(
            f"{path} has weights that are not finite in {state_dicts.first(broken)}: its training "
            "diverged; choose an earlier checkpoint"
        )
    values = {
        key: tensors[key].to(value) if key in loaded else value for key, value in expected.items()
    }
    has_heads = len(encoder) < len(expected)
    return values, LoadReport(loaded, missing, unexpected if has_heads else [], mismatched)
