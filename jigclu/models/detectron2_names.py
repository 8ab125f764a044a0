"""Translation of a ResNet's tensor names between torchvision and detectron2's detectors.

detectron2 names the stages res2 to res5 and the first convolution stem, keeps every norm
below its convolution, and names the projection of a skip connection shortcut. A detector
with a feature pyramid (FPN) has the whole network in its backbone; a C4 detector ends the
backbone at res4 and applies res5 to each region.
"""

import re

# For each layout, the prefix of res5 and the prefix of all other stages.
PREFIXES = {
    "fpn": ("backbone.bottom_up.", "backbone.bottom_up."),
    "c4": ("roi_heads.", "backbone."),
}
_TORCHVISION = re.compile(r"(?:layer([1-4])\.(\d+)\.)?(conv[1-3]|bn[1-3]|downsample\.[01])\.(\w+)")
_DETECTRON2 = re.compile(
    r"(?P<prefix>.*\.)(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))"
    r"\.(?P<convolution>conv[1-3]|shortcut)(?P<norm>\.norm)?\.(?P<tensor>\w+)"
)


def to_detectron2(name: str, layout: str) -> str:
    """Returns detectron2's name of a tensor: layer1.0.bn2.bias is (…)res2.0.conv2.norm.bias.

    Args:
      name: torchvision's name of a tensor of the ResNet without its classifier.
      layout: "fpn" or "c4".

    Raises:
      ValueError: not such a name.
    """
    match = _TORCHVISION.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not a name in torchvision's ResNet, such as layer1.0.bn2.bias"
        )
    stage, block, layer, tensor = match.groups()
    place = f"res{int(stage) + 1}.{block}" if stage else "stem"
    convolution = "shortcut" if layer.startswith("downsample") else f"conv{layer[-1]}"
    norm = ".norm" if layer.startswith("bn") or layer == "downsample.1" else ""
    return f"{_prefix(stage == '4', layout)}{place}.{convolution}{norm}.{tensor}"


def to_torchvision(name: str, layout: str) -> str:
    """Returns torchvision's name of a tensor of a detector's ResNet.

    Args:
      name: detectron2's name.
      layout: "fpn" or "c4".

    Raises:
      ValueError: not a tensor of that ResNet.
    """
    match = _match(name, layout)
    if match is None:
        raise ValueError(
            f"{name!r} is not a name in detectron2's ResNet, such as "
            f"{_prefix(False, layout)}stem.conv1.…"
        )
    place = f"layer{int(match['stage']) - 1}.{match['block']}." if match["stage"] else ""
    if match["convolution"] == "shortcut":
        return f"{place}downsample.{1 if match['norm'] else 0}.{match['tensor']}"
    layer = ("bn" if match["norm"] else "conv") + match["convolution"][-1]
    return f"{place}{layer}.{match['tensor']}"


def is_name(name: str, layout: str) -> bool:
    """Returns whether a tensor belongs to the ResNet of a detector with that layout."""
    return _match(name, layout) is not None


def _match(name: str, layout: str) -> re.Match[str] | None:
    match = _DETECTRON2.fullmatch(name)
    if match is None or match["prefix"] != _prefix(match["stage"] == "5", layout):
        return None
    return match


def _prefix(is_last_stage: bool, layout: str) -> str:
    return PREFIXES[layout][0 if is_last_stage else 1]
