"""Tests that detection/configs have the published settings when detectron2 reads them."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
from pathlib import Path
from typing import Any

from absl.testing import absltest, parameterized
from detectron2.config import get_cfg

CONFIGS = Path(__file__).parents[2] / "detection" / "configs"

SHARED = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.MASK_ON": False,
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 800,
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
}
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
}
C4 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
}
COCO = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "INPUT.MIN_SIZE_TRAIN": tuple(range(640, 801, 32)),
    "SOLVER.MAX_ITER": 180_000,
    "SOLVER.STEPS": (120_000, 160_000),
    "SOLVER.WARMUP_ITERS": 1000,
}
VOC = {
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "INPUT.MIN_SIZE_TRAIN": tuple(range(480, 801, 32)),
    "SOLVER.MAX_ITER": 24_000,
    "SOLVER.STEPS": (18_000, 22_000),
    "SOLVER.WARMUP_ITERS": 100,
}


class ConfigsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("R50-JigClu", SHARED | FPN | COCO),
        ("voc-R50-JigClu", SHARED | FPN | VOC),
        ("R50-C4-JigClu", SHARED | C4 | COCO),
        ("voc-R50-C4-JigClu", SHARED | C4 | VOC),
    )
    def test_settings_are_the_published_ones(self, name: str, expected: dict[str, Any]) -> None:
        cfg = get_cfg()
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
        for key, value in expected.items():
            found: Any = cfg
            for part in key.split("."):
                found = found[part]
            self.assertEqual(found, value, key)


if __name__ == "__main__":
    absltest.main()
