"""The head of a C4 detector with one normalization more, after res5."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Res5ROIHeads whose res5 ends in MODEL.RESNETS.NORM.

    Self-supervised features have no common scale; the norm gives them one before the
    box predictor, as it has in pre-trained classifiers (MoCo, He et al. 2020, section 4.2).
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        norm: Any = get_norm(cfg.MODEL.RESNETS.NORM, channels)
        res5.add_module("norm", norm)
        return res5, channels
