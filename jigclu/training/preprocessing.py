"""The preprocessing of images for which an encoder was trained or exported."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from jigclu.data.transform import EvalTransform
from jigclu.models.weights import METADATA_KEY
from jigclu.system.tensor_files import METADATA

# Evaluation preprocessing of ImageNet.
_IMAGENET = {
    "resize": 256,
    "crop": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# Bindings recorded in a checkpoint that describe the encoder's images; their configurables differ
# between tasks, methods and versions.
_RECORDED = re.compile(
    r"^\w+\.(resize|crop|mean|std|view_size|grid|patch_size) = (.+)$", re.MULTILINE
)


def recorded_transform(contents: Mapping[Any, Any]) -> EvalTransform:
    """Returns the preprocessing for an encoder.

    It is that of evaluation in the run that wrote the weights, or of the export that wrote a
    .safetensors file. If that run had no evaluation, images are cropped to the size of its training
    inputs. For weights of other projects they are resized to 256 and cropped to 224 pixels, as
    usual for ImageNet.

    Args:
      contents: of the file of the encoder, from `tensor_files.read` or `peek`.
    """
    config = contents.get("config")
    found = dict(_RECORDED.findall(config)) if isinstance(config, str) else {}
    values = {name: ast.literal_eval(value) for name, value in found.items()}
    exported = json.loads(contents.get(METADATA, {}).get(METADATA_KEY, "{}"))
    values |= {
        name: tuple(value) if isinstance(value, list) else value for name, value in exported.items()
    }
    side = values.get("view_size", values.get("grid", 0) * values.get("patch_size", 0))
    if "crop" not in values and side:
        values["crop"] = side
        values["resize"] = round(side * _IMAGENET["resize"] / _IMAGENET["crop"])
    return EvalTransform(**{name: values.get(name, usual) for name, usual in _IMAGENET.items()})
