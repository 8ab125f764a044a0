"""Checks of settings that detectron2 ignores, or rejects only during training."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY

from jigclu.detection.initial_weights import DEPTHS
from jigclu.system import errors
from jigclu.system.errors import UserError

_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES: dict[str, Sequence[object]] = {
    "MODEL.DEVICE": ("cuda", "cpu"),
    "MODEL.RESNETS.DEPTH": DEPTHS,
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "RetinaNet"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
}
# Parts that detectron2 finds by name; those that a detector does not have are never looked up.
_REGISTRIES = {
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
# Those of detectron2.layers.get_norm; "" means none.
_NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "")
_UNSUPPORTED = {
    "TEST.AUG.ENABLED": "evaluates each image once",
    "MODEL.KEYPOINT_ON": "trains boxes and masks",
    "MODEL.LOAD_PROPOSALS": "computes all proposals",
}


def check(cfg: CfgNode) -> None:
    """Raises UserError for a setting that would have no effect, or that detectron2 lacks."""
    for key, names in _CHOICES.items():
        _check_name(key, value(cfg, key), names)
    for key, registry in _REGISTRIES.items():
        # Detectors without this part have an empty name.
        _check_name(key, value(cfg, key), (*(name for name, _ in registry), ""))
    for key, norm in _norms("MODEL", cfg.MODEL):
        _check_name(key, norm, _NORMS)
    for key, reason in _UNSUPPORTED.items():
        if value(cfg, key):
            raise UserError(f"{key} is True, but this command {reason}: set it to False")
    if cfg.MODEL.MASK_ON and _is_retinanet(cfg):
        raise UserError("MODEL.MASK_ON is True, but RetinaNet predicts no masks: set it to False")
    workers = cfg.DATALOADER.NUM_WORKERS
    errors.check(workers >= 0, "DATALOADER.NUM_WORKERS", workers, "0 or more")
    # numpy accepts no seeds of more than 32 bits; trials and processes count up from it.
    errors.check(cfg.SEED < 2**31, "SEED", cfg.SEED, f"below {2**31}")
    _check_expected_results(cfg)


def value(cfg: CfgNode, key: str) -> Any:
    """Returns the value of a key such as MODEL.RESNETS.DEPTH."""
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


def classes_key(cfg: CfgNode) -> str:
    """Returns the key of the number of classes, which depends on the architecture."""
    return "MODEL.RETINANET.NUM_CLASSES" if _is_retinanet(cfg) else "MODEL.ROI_HEADS.NUM_CLASSES"


def _check_expected_results(cfg: CfgNode) -> None:
    """Rejects expectations with which detectron2 fails after training."""
    tasks = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    for expected in cfg.TEST.EXPECTED_RESULTS:
        match expected:
            case [task, str(), int() | float(), int() | float()] if task in tasks:
                continue
        raise UserError(
            f"TEST.EXPECTED_RESULTS holds {expected}; expected [task, metric, value, tolerance], "
            f"where task is {' or '.join(tasks)}"
        )
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) > 1:
        raise UserError("TEST.EXPECTED_RESULTS needs one data set: name only one in DATASETS.TEST")


def _is_retinanet(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.META_ARCHITECTURE == "RetinaNet")


def _norms(key: str, node: CfgNode) -> Iterator[tuple[str, str]]:
    """Yields all keys that end with NORM, and their values."""
    for name, child in node.items():
        if isinstance(child, CfgNode):
            yield from _norms(f"{key}.{name}", child)
        elif name == "NORM":
            yield f"{key}.{name}", child


def _check_name(key: str, name: object, names: Sequence[object]) -> None:
    if name not in names:
        known = ", ".join(str(other) for other in names if other)
        raise UserError(f"{key} is {name!r}; expected one of {known}")
