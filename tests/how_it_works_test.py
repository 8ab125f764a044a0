"""The script that draws the picture of docs/how_it_works.md."""

import runpy
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from jigclu import config
from jigclu.methods.jigsaw import Jigsaw
from jigclu.models.encoder import create_encoder
from jigclu.tasks.pretrain import PretrainTask
from jigclu.training import checkpoint
from tests.folder_case import FolderTestCase

DOCS = Path(__file__).parents[1] / "docs"


class HowItWorksTest(FolderTestCase):
    def test_picture_of_a_demo_is_drawn(self) -> None:
        task = config.load(["gin/demo.gin"], []).task
        assert isinstance(task, PretrainTask) and isinstance(task.method, Jigsaw)
        torch.manual_seed(0)
        network = task.method.network(create_encoder("resnet18", False))
        saved = {
            "parameters": dict(network.named_parameters()),
            "buffers": dict(network.named_buffers()),
        }
        main = runpy.run_path(str(DOCS / "how_it_works.py"))["main"]
        output = self.folder / "picture.png"
        with (
            mock.patch.object(checkpoint, "latest"),
            mock.patch.object(checkpoint, "load", return_value=saved),
        ):
            main("runs/demo", str(output))
        drawn, committed = map(read_pixels, (output, DOCS / "how_it_works.png"))
        self.assertEqual(drawn.shape, committed.shape)
        # Photographs, boxes and patches do not depend on the network, but predictions do.
        change = (drawn - committed).abs().mean((0, 1))
        self.assertLess(change[:430].mean(), 5)
        self.assertGreater(change[430:].mean(), 5)


def read_pixels(path: Path) -> Tensor:
    """Returns RGB in [0, 255], float32 [3, height, width]."""
    return pil_to_tensor(Image.open(path).convert("RGB")).float()


if __name__ == "__main__":
    absltest.main()
