"""Pictures of a detector's predictions next to the annotations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode, Instances, polygons_to_bitmask
from numpy.typing import NDArray
from pycocotools import mask as run_lengths
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.functional import to_pil_image

from jigclu.detection import pictures
from jigclu.detection.pictures import Shape


def draw(
    cfg: CfgNode, model: nn.Module, folder: Path, *, images: int, step: int, score: float
) -> list[Path]:
    """Draws annotations and predictions on the first images of DATASETS.TEST[0].

    Args:
      cfg: configuration of the detector.
      model: the detector, in eval mode.
      folder: destination of <number>_<image>.png; TensorBoard's events go to OUTPUT_DIR.
      images: number of images.
      step: training iterations so far, for TensorBoard.
      score: predictions with a lower score are left out.

    Returns:
      The paths of the pictures, in the order of the data set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = cfg.DATASETS.TEST[0]
    classes = MetadataCatalog.get(name).thing_classes
    to_inputs = DatasetMapper(cfg, is_train=False)
    paths: list[Path] = []
    with SummaryWriter(cfg.OUTPUT_DIR) as writer, torch.no_grad():
        for number, record in enumerate(DatasetCatalog.get(name)[:images], start=1):
            (output,) = model([to_inputs(record)])
            # Copied, because the image may be in read-only memory.
            image = torch.tensor(read_image(record["file_name"], "RGB")).permute(2, 0, 1)
            annotated = annotated_shapes(record, with_masks=cfg.MODEL.MASK_ON)
            predicted = predicted_shapes(output["instances"])
            picture = pictures.compare(image, annotated, predicted, classes, score)
            # Images of several folders may share a name.
            paths.append(folder / f"{number}_{Path(record['file_name']).stem}.png")
            to_pil_image(picture).save(paths[-1])
            writer.add_image(f"predictions/{paths[-1].stem}", picture, step)
    return paths


def predicted_shapes(instances: Instances) -> list[Shape]:
    """Returns the objects, and their masks if the detector predicts any."""
    found = instances.to("cpu")
    masks = found.pred_masks.numpy() if found.has("pred_masks") else [None] * len(found)
    return [
        Shape(tuple(box), number, score, mask)
        for box, number, score, mask in zip(
            found.pred_boxes.tensor.tolist(),
            found.pred_classes.tolist(),
            found.scores.tolist(),
            masks,
            strict=True,
        )
    ]


def annotated_shapes(record: Mapping[str, Any], *, with_masks: bool) -> list[Shape]:
    """Returns the annotated objects of one of detectron2's records."""
    size = record["height"], record["width"]
    return [
        Shape(
            tuple(BoxMode.convert(found["bbox"], found["bbox_mode"], BoxMode.XYXY_ABS)),
            found["category_id"],
            mask=_decode(found["segmentation"], *size)
            if with_masks and "segmentation" in found
            else None,
            is_ignored=bool(found.get("iscrowd") or found.get("is_difficult")),
        )
        for found in record["annotations"]
    ]


def _decode(mask: list[list[float]] | dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Returns bool [height, width] of polygons or of COCO's compressed run-length encoding."""
    if isinstance(mask, dict):
        decoded: NDArray[np.bool_] = run_lengths.decode(mask).astype(bool)
        return decoded
    return polygons_to_bitmask([np.asarray(polygon) for polygon in mask], height, width)
