"""Check that detectron2 loads weights completely into the detector that it builds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from jigclu.models.detectron2_names import is_name
from jigclu.system.errors import UserError

_SHOWN_NAMES = 3


class _Probe(DetectionCheckpointer):
    """Keeps the names that differ, which detectron2 only logs."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        self.incompatible = incompatible


def check(detector: nn.Module, weights: str, layout: str, *, is_whole: bool) -> None:
    """Loads weights into a detector and rejects those that detectron2 skips.

    detectron2 itself only logs a warning and leaves the tensors random.

    Args:
      detector: the detector, on the CPU.
      weights: file or URL.
      layout: "fpn" or "c4".
      is_whole: whether the weights must fill the whole detector instead of its ResNet.

    Raises:
      UserError: names the tensors that do not fit.
    """
    probe = _Probe(detector)
    probe.load(weights, checkpointables=[])
    missing, unexpected, reshaped = probe.incompatible
    lost = [name for name, *_ in reshaped] + missing
    if not is_whole:
        # Pickles of Caffe2 hold no statistics, because theirs are merged into scale and offset.
        lost = [
            name for name in lost if is_name(name, layout) and name.endswith((".weight", ".bias"))
        ]
    lost += [name for name in unexpected if is_name(name, layout)]
    # Counters of batches are not used.
    names = sorted({name for name in lost if not name.endswith(".num_batches_tracked")})
    if names:
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        raise UserError(
            f"weights {weights} would be loaded only in part, because {len(names)} tensors do not "
            f"fit the detector: {', '.join(names[:_SHOWN_NAMES])}{more}: use the MODEL settings "
            "that the weights were made for, or other weights"
        )


def build(cfg: CfgNode) -> nn.Module:
    """Builds a detector on the CPU; raises UserError for settings that detectron2 rejects."""
    on_cpu = cfg.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    with _reporting("build this detector", "MODEL"):
        model: nn.Module = build_model(on_cpu)
    return model


def check_training(cfg: CfgNode, detector: nn.Module) -> None:
    """Raises UserError for settings of optimizer or augmentation that detectron2 rejects."""
    with _reporting("train with this schedule or optimizer", "SOLVER"):
        build_lr_scheduler(cfg, build_optimizer(cfg, detector))
    with _reporting("read images in this way", "INPUT"):
        DatasetMapper(cfg, is_train=True).augmentations(AugInput(np.zeros((60, 80, 3), np.uint8)))


@contextmanager
def _reporting(purpose: str, group: str) -> Iterator[None]:
    """Turns detectron2's errors into a UserError that names a group of settings."""
    try:
        yield
    except Exception as error:  # detectron2 raises many kinds of errors for invalid settings.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"detectron2 cannot {purpose} ({reason}): fix the {group} settings"
        ) from error
