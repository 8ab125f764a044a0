"""Convolutional networks of timm, up to the last feature map, with global batch normalization.

timm is an optional dependency, imported only when one of its networks is named.
"""

import difflib
import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import nn

from jigclu.models.batch_norm import BatchNorm, BatchNormAct
from jigclu.system.errors import UserError

PREFIX = "timm/"
# A side that every convolutional network accepts, but transformers of a fixed side do not.
_SIDE = 128


class _Description(NamedTuple):
    """The feature map of a network.

    channels: of the map.
    head: children of the network that the map does not depend on.
    """

    channels: int
    head: frozenset[str]


def create_network(name: str) -> tuple[Any, int]:
    """Builds a network with random weights and timm's parameter names, without its head.

    Its `forward_features` maps [batch, 3, height, width] to the feature map [batch, channels,
    rows, columns]. Batch normalization is over all ranks; group and layer normalization stay.
    Dropout and drop path are off, also in the few networks in which timm turns them on, because
    activation recomputation needs deterministic networks.

    Args:
      name: of timm, such as convnext_tiny.

    Returns:
      The network, and the channels of its feature map.

    Raises:
      UserError: timm is not installed, the name is unknown, or the network has no feature map
        for images of any size.
    """
    description = _describe(name)
    network = _create(name)
    for child in description.head:
        setattr(network, child, nn.Identity())
    _turn_off_dropout(network)
    _replace_batch_norm(network, name)
    return network, description.channels


def _create(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=0)


@functools.cache
def _describe(name: str) -> _Description:
    """Describes a network from a forward pass without memory; raises as `create_network`."""
    _check_name(name)
    used: set[str] = set()
    with torch.device("meta"), torch.no_grad():
        network = _create(name).eval()
        for path, module in network.named_modules():
            module.register_forward_hook(lambda *_, path=path: used.add(path))
        try:
            maps = network.forward_features(torch.empty(2, 3, _SIDE, _SIDE))
        except Exception as error:
            # What a network of a fixed image size raises, which is seldom helpful.
            raise _no_feature_map(name, f"it rejects images of {_SIDE} pixels") from error
    shape = tuple(getattr(maps, "shape", ()))
    if len(shape) != 4 or shape[1] != network.num_features:
        raise _no_feature_map(name, f"it returns {list(shape) or type(maps).__name__}")
    head = {
        child
        for child, module in network.named_children()
        if not any(path == child or path.startswith(f"{child}.") for path in used)
        and any(True for _ in module.parameters())
    }
    return _Description(shape[1], frozenset(head))


def _check_name(name: str) -> None:
    if not _is_installed():
        raise UserError(
            f"encoder is {PREFIX + name!r}, which needs timm, not installed: "
            "pip install -e '.[timm]', or use a ResNet of torchvision, such as 'resnet50'"
        )
    if not exists(name):
        raise UserError(f"encoder {PREFIX + name!r} is unknown to timm{_suggest(name)}")


def exists(name: str) -> bool:
    """Returns whether timm is installed and has a network of this name."""
    if not _is_installed():
        return False
    import timm

    return timm.is_model(name) and "." not in name


def _is_installed() -> bool:
    return importlib.util.find_spec("timm") is not None


def _suggest(name: str) -> str:
    """Returns "; did you mean …?" with the nearest name, or what lists all names."""
    import timm

    # The name of pretrained weights, after a dot, is not part of the network's.
    near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 1)
    return f"; did you mean {PREFIX + near[0]!r}?" if near else ": timm.list_models() has all names"


def _no_feature_map(name: str, reason: str) -> UserError:
    return UserError(
        f"encoder {PREFIX + name!r} has no feature map [batch, channels, height, width] for images "
        f"of any size ({reason}); use a convolutional network, such as 'timm/convnext_tiny' or "
        "'resnet50', instead of a transformer"
    )


def _turn_off_dropout(network: nn.Module) -> None:
    module: Any
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def _replace_batch_norm(network: nn.Module, name: str) -> None:
    """Replaces batch normalization of timm and torch by ours, with the same parameters."""
    from timm.layers import BatchNormAct2d

    for parent in list(network.modules()):
        for child, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, child, BatchNorm.adopt(norm))
            elif type(norm) is BatchNormAct2d:
                adopted = BatchNormAct.adopt(norm)
                adopted.act = norm.act
                setattr(parent, child, adopted)
    left = [type(m) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise UserError(
            f"encoder {PREFIX + name!r} contains {left[0].__name__}, whose statistics this trainer "
            "cannot compute over all devices; use another network"
        )
