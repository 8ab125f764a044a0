"""detectron2's configuration files, changed by KEY VALUE pairs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg

from jigclu.detection import settings
from jigclu.models.encoder import has_basic_blocks
from jigclu.system.errors import UserError


def read(file: str) -> CfgNode:
    """Returns the configuration of --config-file; raises UserError if it is missing or invalid."""
    if not Path(file).is_file():
        raise UserError(
            f"--config-file is {file!r}, which is not a file: use one of detection/configs, or "
            "config.yaml in the OUTPUT_DIR of a run"
        )
    cfg = get_cfg()
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except Exception as error:  # yacs raises many kinds of errors for invalid configurations.
        raise UserError(f"--config-file {file}: {_first_line(error)}") from error
    return cfg


def override(cfg: CfgNode, pairs: Sequence[str | int]) -> None:
    """Changes the configuration by alternating keys and values, and checks it.

    Raises:
      UserError: a key does not exist, or a value is invalid.
    """
    try:
        cfg.merge_from_list(list(pairs))
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(f"KEY VALUE pairs: {_first_line(error)}") from error
    if has_basic_blocks(f"resnet{cfg.MODEL.RESNETS.DEPTH}"):
        # The only width that such a ResNet has, and that detectron2 builds.
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    settings.check(cfg)


def choose_device(cfg: CfgNode) -> None:
    """Replaces cuda by cpu on machines without a GPU, and prints that."""
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        print("no GPU: MODEL.DEVICE is cpu")
        cfg.MODEL.DEVICE = "cpu"


def _first_line(error: Exception) -> str:
    # str() of a KeyError would add quotes.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    return f"{text or type(error).__name__}".splitlines()[0]
