"""Tests of jigclu.detection.extra_norm with the models that the configurations build."""

from tests import detectron2_needed  # noqa: F401  # isort: skip
import re
from pathlib import Path

import torch
from absl.testing import absltest, parameterized
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from jigclu.detection import extra_norm
from jigclu.models.encoder import Encoder, create_encoder
from jigclu.ops.normalize import normalize
from jigclu.tasks.export_formats import FORMATS
from tests import samples

CONFIGS = Path(__file__).parents[2] / "detection" / "configs"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _configuration(name: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def _encoder() -> Encoder:
    torch.manual_seed(0)
    encoder = create_encoder("resnet50", False).eval()
    for name, value in encoder.state_dict().items():
        # Norms differ between layers, and features neither vanish nor explode.
        if name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
        elif value.dim() == 1:
            value.uniform_(0.5, 1.0)
    return encoder


def _stages(encoder: Encoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    stages = {}
    for name, child in encoder.named_children():
        images = child(images)
        if name.startswith("layer"):
            stages[f"res{int(name[-1]) + 1}"] = images
    return stages


class ModelsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("R50-JigClu", "detectron2"),
        ("voc-R50-JigClu", "detectron2"),
        ("R50-C4-JigClu", "detectron2_c4"),
        ("voc-R50-C4-JigClu", "detectron2_c4"),
    )
    def test_exported_weights_give_the_encoders_feature_maps(self, name: str, layout: str) -> None:
        cfg = _configuration(name)
        if layout == "detectron2_c4":
            # The detector itself uses only the last one.
            cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4"]
        model = build_model(cfg).eval()
        encoder = _encoder()
        path = Path(self.create_tempdir()) / "weights.pth"
        path.write_bytes(FORMATS[layout].serialize(encoder, samples.DESCRIPTION))
        DetectionCheckpointer(model).load(str(path))
        # Only that norm is new; batch counters are not used.
        new = re.compile(r".*\.res5\.norm\..*|.*\.num_batches_tracked")
        names = [key for key in model.state_dict() if ".res" in key or ".stem" in key]
        self.assertCountEqual(
            [key for key in names if not new.fullmatch(key)],
            torch.load(path, weights_only=True)["model"],
        )

        pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
        with torch.no_grad():
            expected = _stages(encoder, normalize(pixels[None], MEAN, STD))
            backbone = getattr(model.backbone, "bottom_up", model.backbone)
            found = backbone(model.preprocess_image([{"image": pixels}]).tensor)
            if layout == "detectron2_c4":
                # Leaves out the norm after res5.
                found["res5"] = nn.Sequential(*list(model.roi_heads.res5)[:3])(found["res4"])
        self.assertCountEqual(found, expected)
        for stage in expected:
            self.assertGreater(expected[stage].std(), 0.1, stage)
            torch.testing.assert_close(found[stage], expected[stage], atol=1e-4, rtol=0)

    def test_a_norm_follows_res5(self) -> None:
        model = build_model(_configuration("R50-C4-JigClu"))
        self.assertIsInstance(model.roi_heads, extra_norm.Res5ROIHeadsExtraNorm)
        *blocks, norm = model.roi_heads.res5
        self.assertLen(blocks, 3)
        self.assertIsInstance(norm, nn.SyncBatchNorm)
        self.assertEqual(norm.num_features, 2048)


if __name__ == "__main__":
    absltest.main()
