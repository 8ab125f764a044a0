"""The head of a C4 detector with an additional normalization after res5."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5ROIHeads with MODEL.RESNETS.NORM after res5.

    Self-supervised features may have another scale than those of pre-trained classifiers; the
    norm adjusts it before the box predictor (MoCo, He et al., CVPR 2020, section 4.2).
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        norm: Any = get_norm(cfg.MODEL.RESNETS.NORM, channels)
        res5.add_module("norm", norm)
        return res5, channels
