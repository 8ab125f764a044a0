"""Whether a file of weights is what a detector can begin with, before it is built."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from jigclu import checkpoint
from jigclu.detectron2_names import PREFIXES, is_name, to_detectron2
from jigclu.encoder import create_encoder
from jigclu.errors import UserError

_FORMATS = {"fpn": "detectron2", "c4": "detectron2_c4"}


def check(path: str, depth: int, layout: str, *, whole: bool, unpickle: bool) -> None:
    """Refuses weights of which a part would be left out, or that cannot be read in safety.

    Args:
      path: MODEL.WEIGHTS. Of an address only the suffix is looked at.
      depth: of the ResNet, in layers.
      layout: "fpn" or "c4".
      whole: not the backbone alone, but the heads of a detector too.
      unpickle: the user consents to files of pickle, which may run any code.

    Raises:
      UserError: absent, damaged, pickled without consent, of another depth or layout,
        or not of detectron2.
    """
    if path.endswith((".pkl", ".pickle")):
        if not unpickle:
            raise UserError(
                f"MODEL.WEIGHTS {path} is a pickle, which may run any code as it is read; give a "
                ".pth of gin/detection_export.gin, or --unpickle-weights if you trust its origin"
            )
        return
    if "://" in path:
        return
    found = _tensors(Path(path), layout)
    expected = _expected(depth, layout)
    difference = checkpoint.describe_mismatch(expected, _resnet(found, layout))
    if difference:
        raise UserError(
            f"MODEL.WEIGHTS {path} holds {_held(found)}, expected a ResNet-{depth} of the layout "
            f"{layout} ({difference}); give weights of that depth and layout (format "
            f"{_FORMATS[layout]!r} of gin/detection_export.gin), or set MODEL.RESNETS.DEPTH"
        )
    if whole and not any(name.startswith("proposal_generator.") for name in found):
        raise UserError(
            f"MODEL.WEIGHTS {path} holds a backbone alone; to evaluate give a detector, "
            "such as the model_final.pth of a training"
        )


def _tensors(path: Path, layout: str) -> dict[str, Tensor]:
    contents = checkpoint.read(path, "cpu")
    model = contents.get("model")
    named = isinstance(model, Mapping) and any(
        is_name(str(name), layout) for name in model for layout in PREFIXES
    )
    if not named:
        raise UserError(
            f"MODEL.WEIGHTS {path} does not have detectron2's names; write it so with "
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
            if not checkpoint.describe_mismatch(expected, _resnet(found, layout)):
                return f"a ResNet-{depth} of the layout {layout}"
    return "another network"
