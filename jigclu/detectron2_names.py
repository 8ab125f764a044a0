"""Names of a ResNet's tensors: torchvision's to those of detectron2's FPN backbone, and back.

detectron2 calls the stages res2 to res5, the first convolution the stem, keeps every norm
below its convolution, and calls the projection of a skip connection shortcut.
"""

import re

PREFIX = "backbone.bottom_up."
_TORCHVISION = re.compile(r"(?:layer([1-4])\.(\d+)\.)?(conv[1-3]|bn[1-3]|downsample\.[01])\.(\w+)")
_DETECTRON2 = re.compile(
    re.escape(PREFIX) + r"(?:stem|res([2-5])\.(\d+))\.(conv[1-3]|shortcut)(\.norm)?\.(\w+)"
)


def to_detectron2(name: str) -> str:
    """Returns the name in detectron2 of a tensor: layer1.0.bn2.bias is …res2.0.conv2.norm.bias.

    Raises:
      ValueError: not a tensor of torchvision's ResNet without its classifier.
    """
    match = _TORCHVISION.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no name of torchvision's ResNet, such as layer1.0.bn2.bias")
    stage, block, layer, tensor = match.groups()
    place = f"res{int(stage) + 1}.{block}" if stage else "stem"
    convolution = "shortcut" if layer.startswith("downsample") else f"conv{layer[-1]}"
    norm = ".norm" if layer.startswith("bn") or layer == "downsample.1" else ""
    return f"{PREFIX}{place}.{convolution}{norm}.{tensor}"


def to_torchvision(name: str) -> str:
    """Returns the name in torchvision of a tensor of detectron2's FPN backbone.

    Raises:
      ValueError: not a tensor of that ResNet.
    """
    match = _DETECTRON2.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of detectron2's ResNet, such as {PREFIX}stem.conv1.…"
        )
    stage, block, convolution, norm, tensor = match.groups()
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    if convolution == "shortcut":
        return f"{place}downsample.{1 if norm else 0}.{tensor}"
    return f"{place}{'bn' if norm else 'conv'}{convolution[-1]}.{tensor}"
