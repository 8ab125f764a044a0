"""Export formats of an encoder, each with a writer and a reader.

Packages that only one format needs are imported where it is written or read, so that the
other formats work without them.
"""

import dataclasses
import functools
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from jigclu.data.transform import EvalTransform
from jigclu.models.detectron2_names import to_detectron2, to_torchvision
from jigclu.models.encoder import Encoder, is_of_timm
from jigclu.models.weights import METADATA_KEY

# Maps normalized images, float32 [batch, 3, side, side], to features [batch, channels].
Features = Callable[[Tensor], Tensor]


class Description(NamedTuple):
    """What users of exported weights need to know.

    encoder, small_stem: arguments of `create_encoder`.
    transform: preprocessing of the images.
    """

    encoder: str
    small_stem: bool
    transform: EvalTransform


class Format(NamedTuple):
    """An export format.

    suffix: of the file, after the encoder's name.
    packages: required beyond those of this project.
    usage: how users read the file, for the card.
    serialize: (encoder in eval mode, its description) to the bytes of the file.
    read: (path, description) to a function that computes features with only the libraries of the
      format.
    small_stem: whether it can hold an encoder with a small stem.
    basic_blocks: whether it can hold an encoder of basic blocks: ResNet-18 and ResNet-34.
    timm_networks: whether it can hold an encoder of timm.
    """

    suffix: str
    packages: tuple[str, ...]
    usage: str
    serialize: Callable[[Encoder, Description], bytes]
    read: Callable[[Path, Description], Features]
    small_stem: bool = True
    basic_blocks: bool = True
    timm_networks: bool = True


def _torch_bytes(contents: dict[str, object]) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


def _write_state_dict(encoder: Encoder, about: Description) -> bytes:
    del about
    return _torch_bytes(dict(encoder.state_dict()))


def _write_safetensors(encoder: Encoder, about: Description) -> bytes:
    values = about._asdict() | dataclasses.asdict(about.transform)
    del values["transform"]
    metadata = {"format": "pt", METADATA_KEY: json.dumps(values)}
    return safetensors.torch.save(dict(encoder.state_dict()), metadata)


def _write_detectron2(layout: str, encoder: Encoder, about: Description) -> bytes:
    """Writes exact names, below "model" in a .pth, so that detectron2 matches none by guessing."""
    del about
    tensors = {to_detectron2(name, layout): value for name, value in encoder.state_dict().items()}
    return _torch_bytes({"model": tensors})


def _write_onnx(encoder: Encoder, about: Description) -> bytes:
    # The exporter logs its own passes, which do not concern users.
    for package in ("onnxscript", "onnx_ir"):
        logging.getLogger(package).setLevel(logging.WARNING)
    side = about.transform.crop
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, side, side),),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _fill(model: nn.Module, tensors: dict[str, Tensor], about: Description) -> Features:
    """Loads all tensors into a ResNet of torchvision or timm, strictly."""
    if about.small_stem:
        channels = tensors["conv1.weight"].shape[0]
        model.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    model.load_state_dict(tensors)
    return model.eval()


def _torchvision_features(tensors: dict[str, Tensor], about: Description) -> Features:
    model = torchvision.models.get_model(about.encoder, weights=None)
    model.fc = nn.Identity()
    return _fill(model, tensors, about)


def _read_torchvision(path: Path, about: Description) -> Features:
    return _torchvision_features(torch.load(path, weights_only=True), about)


def _read_safetensors(path: Path, about: Description) -> Features:
    tensors = safetensors.torch.load_file(path)
    read = _timm_features if is_of_timm(about.encoder) else _torchvision_features
    return read(tensors, about)


def _read_timm(path: Path, about: Description) -> Features:
    return _timm_features(torch.load(path, weights_only=True), about)


def _timm_features(tensors: dict[str, Tensor], about: Description) -> Features:
    import timm

    name = about.encoder.rpartition("/")[2]
    model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    if not is_of_timm(about.encoder):
        return _fill(model, tensors, about)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    # A layer that is missing must not matter, as those of the head do not.
    for name in missing:
        with torch.no_grad():
            model.state_dict()[name].fill_(torch.nan)
    model.eval()
    return lambda images: model.forward_features(images).mean((2, 3))


def _read_onnx(path: Path, about: Description) -> Features:
    del about
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _read_detectron2(layout: str, path: Path, about: Description) -> Features:
    """Translates the names back to torchvision's, since detectron2 may not be installed."""
    tensors = torch.load(path, weights_only=True)["model"]
    renamed = {to_torchvision(name, layout): value for name, value in tensors.items()}
    return _torchvision_features(renamed, about)


def _detectron2(layout: str, suffix: str, kind: str) -> Format:
    return Format(
        suffix=suffix,
        packages=(),
        usage=f"`MODEL.WEIGHTS` of a detector {kind}, as in `detection/configs`: "
        "`MODEL.RESNETS.STRIDE_IN_1X1 = False`, `INPUT.FORMAT = 'RGB'`, `MODEL.PIXEL_MEAN` and "
        "`MODEL.PIXEL_STD` 255 times the values above",
        serialize=functools.partial(_write_detectron2, layout),
        read=functools.partial(_read_detectron2, layout),
        small_stem=False,
        timm_networks=False,
        # detectron2 builds res5 of a C4 detector only of bottleneck blocks.
        basic_blocks=layout != "c4",
    )


FORMATS = {
    "torchvision": Format(
        suffix=".torchvision.pth",
        packages=(),
        usage="`torchvision.models.get_model` with `fc = torch.nn.Identity()`; `torch.load`, "
        "`load_state_dict`",
        serialize=_write_state_dict,
        read=_read_torchvision,
        timm_networks=False,
    ),
    "safetensors": Format(
        suffix=".safetensors",
        packages=(),
        usage="the same model; `safetensors.torch.load_file`, `load_state_dict`",
        serialize=_write_safetensors,
        read=_read_safetensors,
    ),
    "timm": Format(
        suffix=".timm.pth",
        packages=("timm",),
        usage="`timm.create_model(…, num_classes=0)`; `torch.load`, `load_state_dict`",
        serialize=_write_state_dict,
        read=_read_timm,
    ),
    "onnx": Format(
        suffix=".onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        usage="`onnxruntime.InferenceSession` with input `images` and output `features`, for "
        "any batch size",
        serialize=_write_onnx,
        read=_read_onnx,
    ),
    "detectron2": _detectron2("fpn", ".detectron2.pth", "with a feature pyramid (FPN)"),
    "detectron2_c4": _detectron2("c4", ".detectron2_c4.pth", "of type C4"),
}
