"""Checks of initial weights before the detector is built."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jigclu.models import state_dicts
from jigclu.models.detectron2_names import PREFIXES, is_name, to_detectron2
from jigclu.models.encoder import create_encoder, has_basic_blocks
from jigclu.system import tensor_files
from jigclu.system.errors import UserError

# Classifiers of R-CNN, with one more output for the background, and of RetinaNet, with one output
# per class and anchor, next to its regression of the 4 edges of a box per anchor.
_RCNN = "roi_heads.box_predictor.cls_score.bias"
_RETINANET, _RETINANET_BOXES = "head.cls_score.bias", "head.bbox_pred.bias"
_FORMATS = {"fpn": "detectron2", "c4": "detectron2_c4"}
_PICKLES = (".pkl", ".pickle")
# Numbers of layers of the ResNets that detectron2 builds.
DEPTHS = (18, 34, 50, 101, 152)


def find_layout(backbone: str) -> str:
    """Returns "fpn" or "c4" for a name of MODEL.BACKBONE."""
    return "fpn" if "fpn" in backbone else "c4"


def check_layout(depth: int, layout: str) -> None:
    """Rejects C4 detectors of basic blocks, whose res5 detectron2 cannot load.

    Args:
      depth: number of layers of the ResNet.
      layout: "fpn" or "c4".
    """
    if layout == "c4" and has_basic_blocks(f"resnet{depth}"):
        raise UserError(
            f"MODEL.RESNETS.DEPTH is {depth}, but detectron2 builds C4 detectors only of "
            "bottleneck blocks, so that res5 would stay random: use 50 or more, or a "
            "configuration with FPN"
        )


def find_depth(path: str, layout: str) -> int | None:
    """Returns the number of layers of the ResNet in a file of weights.

    Args:
      path: file or URL.
      layout: "fpn" or "c4".

    Returns:
      None if the file is a pickle, is not on this machine, or holds another network or layout.

    Raises:
      UserError: the file is corrupt, or not in detectron2's format.
    """
    if "://" in path or path.endswith(_PICKLES) or not Path(path).is_file():
        return None
    found = _find_network(_tensors(Path(path), layout))
    return found[0] if found and found[1] == layout else None


def check(path: str, depth: int, layout: str, *, classes: int | None, unpickle: bool) -> None:
    """Rejects weights that do not fit the detector completely, or that are unsafe to read.

    Args:
      path: file or URL of the weights; of a URL only the suffix is checked.
      depth: number of layers of the ResNet.
      layout: "fpn" or "c4".
      classes: number of classes of the heads; None accepts a backbone without heads.
      unpickle: whether the user consents to pickle files, which may run any code.

    Raises:
      UserError: the file is missing, corrupt, pickled without consent, of another depth,
        layout or number of classes, or not in detectron2's format.
    """
    # A URL with any other suffix, or none, may lead to a pickle.
    is_url = "://" in path
    if path.endswith(_PICKLES) or (is_url and not path.endswith(".pth")):
        if not unpickle:
            raise UserError(
                f"weights {path} are or may be a pickle, which can run any code when it is read: "
                "use a .pth file from gin/detection_export.gin, or give --unpickle-weights if you "
                "trust the origin"
            )
        if not is_url and not Path(path).is_file():
            raise UserError(f"weights {path} do not exist: check the path")
        return
    if is_url:
        return
    found = _tensors(Path(path), layout)
    expected = _expected(depth, layout)
    difference = state_dicts.describe_mismatch(expected, _resnet(found, layout))
    if difference:
        network = _find_network(found)
        held = "a ResNet-{} in layout {}".format(*network) if network else "another network"
        raise UserError(
            f"weights {path} hold {held}; expected a ResNet-{depth} in layout "
            f"{layout} ({difference}): use weights with that depth and layout (format "
            f"{_FORMATS[layout]!r} of gin/detection_export.gin), or set MODEL.RESNETS.DEPTH"
        )
    if classes is not None:
        _check_heads(path, found, classes)


def _check_heads(path: str, found: Mapping[str, Tensor], classes: int) -> None:
    held = _count_classes(found)
    if held is None:
        raise UserError(
            f"weights {path} hold only a backbone: for evaluation give a detector, such as "
            "model_final.pth of a training run"
        )
    if held != classes:
        raise UserError(
            f"weights {path} have {held} classes, but the data have {classes}: use the data "
            "that this detector was trained on, or another detector"
        )


def _count_classes(found: Mapping[str, Tensor]) -> int | None:
    """Returns the number of classes of a detector; None of a backbone without heads."""
    if _RCNN in found:
        return len(found[_RCNN]) - 1
    if _RETINANET in found and _RETINANET_BOXES in found:
        return 4 * len(found[_RETINANET]) // len(found[_RETINANET_BOXES])
    return None


def _tensors(path: Path, layout: str) -> dict[str, Tensor]:
    contents = tensor_files.read(path, "cpu")
    # The published convert.py writes the tensors without nesting them, as detectron2 accepts.
    model = contents.get("model", contents)
    named = isinstance(model, Mapping) and any(
        is_name(str(name), each) for name in model for each in PREFIXES
    )
    if not named:
        raise UserError(
            f"weights {path} do not have detectron2's names: convert them with "
            f"--gin_file=gin/detection_export.gin --gin_bindings=\"export.init_from='{path}'\", "
            f"format {_FORMATS[layout]!r}"
        )
    assert isinstance(model, Mapping)
    return {str(name): value for name, value in model.items() if isinstance(value, Tensor)}


def _expected(depth: int, layout: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        encoder = create_encoder(f"resnet{depth}", small_stem=False)
    return {to_detectron2(name, layout): value for name, value in encoder.state_dict().items()}


def _resnet(found: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Returns the ResNet's tensors without batch counters, which detectron2 does not need."""
    return {
        name: value
        for name, value in found.items()
        if is_name(name, layout) and not name.endswith(".num_batches_tracked")
    }


def _find_network(found: Mapping[str, Tensor]) -> tuple[int, str] | None:
    """Returns depth and layout of the ResNet among tensors; None if it is not one of ours."""
    for layout in PREFIXES:
        for depth in DEPTHS:
            expected = _expected(depth, layout)
            if not state_dicts.describe_mismatch(expected, _resnet(found, layout)):
                return depth, layout
    return None
