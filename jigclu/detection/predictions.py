"""Pictures of what a detector finds."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter

# Boxes drawn on an image: the surest ones.
_BOXES = 20


def draw(cfg: CfgNode, model: nn.Module, folder: Path, images: int, step: int) -> list[Path]:
    """Draws the surest boxes on the first images of the first data set of DATASETS.TEST.

    Args:
      cfg: of the detector.
      model: the detector, in eval mode.
      folder: gets <image>.png; TensorBoard's events go to OUTPUT_DIR.
      images: how many.
      step: iterations of training, for TensorBoard.

    Returns:
      The files, in the order of the data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    paths: list[Path] = []
    with SummaryWriter(cfg.OUTPUT_DIR) as writer, torch.no_grad():
        for (inputs,) in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], batch_size=1):
            if len(paths) == images:
                break
            (output,) = model([inputs])
            instances = output["instances"].to("cpu")
            surest = instances[instances.scores.argsort(descending=True)[:_BOXES]]
            canvas = Visualizer(read_image(inputs["file_name"], "RGB"), metadata)
            # A copy: the canvas is read-only memory.
            picture = np.array(canvas.draw_instance_predictions(surest).get_image())
            paths.append(folder / f"{Path(inputs['file_name']).stem}.png")
            Image.fromarray(picture).save(paths[-1])
            writer.add_image(f"predictions/{paths[-1].stem}", picture, step, dataformats="HWC")
    return paths
