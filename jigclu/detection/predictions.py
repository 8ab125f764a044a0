"""Pictures of a detector's predictions."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

# Boxes drawn per image: those with the highest scores.
_BOXES = 20


def draw(cfg: CfgNode, model: nn.Module, folder: Path, images: int, step: int) -> list[Path]:
    """Draws the boxes with the highest scores on the first images of DATASETS.TEST[0].

    Args:
      cfg: configuration of the detector.
      model: the detector, in eval mode.
      folder: destination of <image>.png; TensorBoard's events go to OUTPUT_DIR.
      images: number of images.
      step: training iterations so far, for TensorBoard.

    Returns:
      The paths of the pictures, in the order of the data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    paths: list[Path] = []
    with SummaryWriter(cfg.OUTPUT_DIR) as writer, torch.no_grad():
        for (inputs,) in build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], batch_size=1):
            if len(paths) == images:
                break
            (output,) = model([inputs])
            # Copied, because the image may be in read-only memory.
            image = torch.tensor(read_image(inputs["file_name"], "RGB")).permute(2, 0, 1)
            picture = draw_boxes(image, output["instances"].to("cpu"), classes)
            paths.append(folder / f"{Path(inputs['file_name']).stem}.png")
            to_pil_image(picture).save(paths[-1])
            writer.add_image(f"predictions/{paths[-1].stem}", picture, step)
    return paths


def draw_boxes(image: Tensor, instances: Instances, classes: Sequence[str]) -> Tensor:
    """Returns the image with the boxes of highest scores, each in the color of its class.

    Args:
      image: RGB, uint8 [3, height, width].
      instances: boxes, scores and classes predicted for the image, on the CPU.
      classes: class names.
    """
    # The highest score comes last, to be drawn on top.
    shown = instances[instances.scores.argsort(descending=True)[:_BOXES].flip(0)]
    if not len(shown):
        return image
    numbers = shown.pred_classes.tolist()
    scores = shown.scores.tolist()
    return draw_bounding_boxes(
        image,
        shown.pred_boxes.tensor,
        [f"{classes[number]} {score:.0%}" for number, score in zip(numbers, scores, strict=True)],
        colors=[_color(number / len(classes)) for number in numbers],
        width=2,
        fill_labels=True,
    )


def _color(hue: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.8, 1.0))
    return red, green, blue
