"""Whether a file of weights is what a detector can begin with, before it is built."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jigclu.models import state_dicts
from jigclu.models.detectron2_names import PREFIXES, is_name, to_detectron2
from jigclu.models.encoder import create_encoder
from jigclu.system import tensor_files
from jigclu.system.errors import UserError

_CLASSIFIER = "roi_heads.box_predictor.cls_score.bias"
_FORMATS = {"fpn": "detectron2", "c4": "detectron2_c4"}


def check(path: str, depth: int, layout: str, *, classes: int | None, unpickle: bool) -> None:
    """Refuses weights of which a part would be left out, or that cannot be read in safety.

    Args:
      path: of the weights. Of an address only the suffix is looked at.
      depth: of the ResNet, in layers.
      layout: "fpn" or "c4".
      classes: that the heads tell apart; None: the backbone alone will do.
      unpickle: the user consents to files of pickle, which may run any code.

    Raises:
      UserError: absent, damaged, pickled without consent, of another depth or layout or
        other classes, or not of detectron2.
    """
    # An address may lead to a pickle by any other suffix, or by none.
    is_address = "://" in path
    if path.endswith((".pkl", ".pickle")) or (is_address and not path.endswith(".pth")):
        if not unpickle:
            raise UserError(
                f"weights {path}: this is or may be a pickle, which may run any code as it is "
                "read; give a .pth of gin/detection_export.gin, or --unpickle-weights if you "
                "trust its origin"
            )
        if not is_address and not Path(path).is_file():
            raise UserError(f"weights {path} do not exist: check the path")
        return
    if is_address:
        return
    found = _tensors(Path(path), layout)
    expected = _expected(depth, layout)
    difference = state_dicts.describe_mismatch(expected, _resnet(found, layout))
    if difference:
        raise UserError(
            f"weights {path} hold {_held(found)}, expected a ResNet-{depth} of the layout "
            f"{layout} ({difference}); give weights of that depth and layout (format "
            f"{_FORMATS[layout]!r} of gin/detection_export.gin), or set MODEL.RESNETS.DEPTH"
        )
    if classes is not None:
        _check_heads(path, found, classes)


def _check_heads(path: str, found: Mapping[str, Tensor], classes: int) -> None:
    if _CLASSIFIER not in found:
        raise UserError(
            f"weights {path} hold a backbone alone; to evaluate give a detector, "
            "such as the model_final.pth of a training"
        )
    # One more stands for none of them.
    held = len(found[_CLASSIFIER]) - 1
    if held != classes:
        raise UserError(
            f"weights {path} tell {held} classes apart, the data have {classes}; give the "
            "data that this detector was trained on, or another detector"
        )


def _tensors(path: Path, layout: str) -> dict[str, Tensor]:
    contents = tensor_files.read(path, "cpu")
    model = contents.get("model")
    named = isinstance(model, Mapping) and any(
        is_name(str(name), layout) for name in model for layout in PREFIXES
    )
    if not named:
        raise UserError(
            f"weights {path} do not have detectron2's names; write it so with "
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
    """Returns what is of the ResNet, without counters, which detectron2 does without."""
    return {
        name: value
        for name, value in found.items()
        if is_name(name, layout) and not name.endswith(".num_batches_tracked")
    }


def _held(found: Mapping[str, Tensor]) -> str:
    """Returns which ResNet of which layout a file holds, as far as it is one of ours."""
    for layout in PREFIXES:
        for depth in (18, 34, 50, 101, 152):
            expected = _expected(depth, layout)
            if not state_dicts.describe_mismatch(expected, _resnet(found, layout)):
                return f"a ResNet-{depth} of the layout {layout}"
    return "another network"
