"""Tests of the settings of detection/configs as detectron2 reads them, value by value."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import contextlib
import io
from pathlib import Path

from absl.testing import absltest, parameterized
from detectron2.config import CfgNode, get_cfg

from jigclu.detection import command, flags, settings

CONFIGS = Path(__file__).parents[2] / "detection" / "configs"

SHARED = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "TEST.PRECISE_BN.ENABLED": True,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
}
RCNN = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.MASK_ON": False,
}
FPN = RCNN | {
    "MODEL.WEIGHTS": "runs/detection_export/resnet50.detectron2.pth",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
FPN_JIGCLU = FPN | {
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}
FPN_MOCO = FPN | {
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.NORM": "",
}
C4 = RCNN | {
    "MODEL.WEIGHTS": "runs/detection_export/resnet50.detectron2_c4.pth",
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
}
RETINANET = {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.WEIGHTS": "runs/detection_export/resnet50.detectron2.pth",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.RETINANET.NUM_CLASSES": 80,
    "MODEL.RETINANET.IOU_THRESHOLDS": [0.4, 0.5],
    "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    "MODEL.MASK_ON": False,
}
COCO = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "SOLVER.WARMUP_ITERS": 1000,
}
VOC = {
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "SOLVER.MAX_ITER": 24_000,
    "SOLVER.STEPS": (18_000, 22_000),
    "SOLVER.WARMUP_ITERS": 100,
}
MASKS = {"MODEL.MASK_ON": True}
# Images per batch and learning rate.
JIGCLU = {"SOLVER.IMS_PER_BATCH": 8, "SOLVER.BASE_LR": 0.01}
MOCO = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02}
# 12 epochs of COCO are 1x; 8 images per batch need twice as many iterations as 16.
JIGCLU_1X = JIGCLU | {"SOLVER.STEPS": (120_000, 160_000), "SOLVER.MAX_ITER": 180_000}
JIGCLU_2X = JIGCLU | {"SOLVER.STEPS": (240_000, 320_000), "SOLVER.MAX_ITER": 360_000}
MOCO_1X = MOCO | {"SOLVER.STEPS": (60_000, 80_000), "SOLVER.MAX_ITER": 90_000}
MOCO_2X = MOCO | {"SOLVER.STEPS": (120_000, 160_000), "SOLVER.MAX_ITER": 180_000}
EXPECTED = {
    "R50-JigClu": FPN_JIGCLU | COCO | JIGCLU_1X,
    "R50-C4-JigClu": C4 | COCO | JIGCLU_1X,
    "voc-R50-JigClu": FPN_JIGCLU | VOC | JIGCLU,
    "voc-R50-C4-JigClu": C4 | VOC | JIGCLU,
    "voc-R50-C4-MoCo": C4 | VOC | MOCO,
    "coco-mask-R50-C4-1x-JigClu": C4 | COCO | MASKS | JIGCLU_1X,
    "coco-mask-R50-C4-2x-JigClu": C4 | COCO | MASKS | JIGCLU_2X,
    "coco-mask-R50-C4-1x-MoCo": C4 | COCO | MASKS | MOCO_1X,
    "coco-mask-R50-C4-2x-MoCo": C4 | COCO | MASKS | MOCO_2X,
    "coco-mask-R50-FPN-1x-JigClu": FPN_JIGCLU | COCO | MASKS | JIGCLU_1X,
    "coco-mask-R50-FPN-2x-JigClu": FPN_JIGCLU | COCO | MASKS | JIGCLU_2X,
    "coco-mask-R50-FPN-1x-MoCo": FPN_MOCO | COCO | MASKS | MOCO_1X,
    "coco-mask-R50-FPN-2x-MoCo": FPN_MOCO | COCO | MASKS | MOCO_2X,
    "coco-RetinaNet-R50-FPN-1x": RETINANET | COCO | MOCO_1X | {"SOLVER.BASE_LR": 0.01},
}


def _read(name: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
    return cfg


class ConfigsTest(parameterized.TestCase):
    def test_every_configuration_is_tested(self) -> None:
        names = {path.stem for path in CONFIGS.iterdir() if not path.stem.startswith("Base-")}
        self.assertEqual(names, set(EXPECTED))

    @parameterized.parameters(*EXPECTED)
    def test_settings_are_the_expected_ones(self, name: str) -> None:
        cfg = _read(name)
        settings.check(cfg)
        for key, value in (SHARED | EXPECTED[name]).items():
            self.assertEqual(settings.value(cfg, key), value, key)

    def test_retinanet_has_three_anchors_per_octave(self) -> None:
        sizes = _read("coco-RetinaNet-R50-FPN-1x").MODEL.ANCHOR_GENERATOR.SIZES
        self.assertLen(sizes, 5)
        for level, found in enumerate(sizes):
            expected = [2 ** (5 + level + place / 3) for place in range(3)]
            self.assertSequenceAlmostEqual(found, expected, places=4)

    @parameterized.parameters(*EXPECTED)
    def test_half_as_many_images_per_batch_train_twice_as_long(self, name: str) -> None:
        given = _read(name).SOLVER
        arguments = ["--config-file", str(CONFIGS / f"{name}.yaml")]
        half = ["--images-per-batch", str(given.IMS_PER_BATCH // 2)]
        args = flags.argument_parser().parse_args([*arguments, *half])
        with contextlib.redirect_stdout(io.StringIO()):
            solver = command.configuration(args).SOLVER
        self.assertEqual(solver.IMS_PER_BATCH, given.IMS_PER_BATCH // 2)
        self.assertEqual(solver.BASE_LR, given.BASE_LR / 2)
        self.assertEqual(solver.MAX_ITER, 2 * given.MAX_ITER)
        self.assertEqual(solver.STEPS, tuple(2 * step for step in given.STEPS))
        self.assertEqual(solver.WARMUP_ITERS, 2 * given.WARMUP_ITERS)


if __name__ == "__main__":
    absltest.main()
