"""The command of detection/predict.py: predictions on the images of a folder."""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from pycocotools import mask as run_lengths
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from jigclu.data.decode import UnreadableImageError
from jigclu.data.folders import scan_folder
from jigclu.data.image_files import ImageFiles
from jigclu.detection import (
    config_file,
    datasets,
    initial_weights,
    loading,
    pictures,
    record,
)
from jigclu.detection.pictures import Shape
from jigclu.detection.predictions import predicted_shapes
from jigclu.system import errors, files, progress
from jigclu.system.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status, which is 2 after an error of the user."""
    args = _argument_parser().parse_args(arguments)
    try:
        errors.check(0 <= args.score <= 1, "--score", args.score, "in [0, 1]")
        with errors.naming("--images"):
            source = scan_folder(args.images)
        output = Path(args.output)
        _check_output(output, Path(args.images))
        weights = args.weights or _last_checkpoint(args.config_file)
        classes = _class_names(weights, args.class_names)
        cfg = _configuration(args, len(classes))
        _check_weights(cfg, weights, len(classes))
        model = build_model(cfg).eval()
        DetectionCheckpointer(model).load(weights)
        _predict(cfg, model, source, args.images, classes, output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def find_objects(cfg: CfgNode, model: nn.Module, image: Tensor) -> list[Shape]:
    """Returns the objects that a detector finds in an image.

    Args:
      cfg: configuration of the detector.
      model: the detector, in eval mode.
      image: RGB, uint8 [3, height, width]; resized as in evaluation.
    """
    height, width = image.shape[1:]
    inputs = AugInput(convert_PIL_to_numpy(to_pil_image(image), cfg.INPUT.FORMAT))
    AugmentationList(build_augmentation(cfg, is_train=False))(inputs)
    pixels = torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
    with torch.no_grad():
        (output,) = model([{"image": pixels, "height": height, "width": width}])
    return predicted_shapes(output["instances"])


def to_result(
    shape: Shape, image_id: int, file_name: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Returns an object in COCO's results format, with the names of its file and class."""
    left, top, right, bottom = shape.box
    result = {
        "image_id": image_id,
        "file_name": file_name,
        "category_id": shape.class_number + 1,
        "category_name": classes[shape.class_number],
        "bbox": [left, top, right - left, bottom - top],
        "score": shape.score,
    }
    if shape.mask is not None:
        encoded = run_lengths.encode(np.asfortranarray(shape.mask, dtype=np.uint8))
        result["segmentation"] = encoded | {"counts": encoded["counts"].decode()}
    return result


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draws and writes a detector's predictions on the images of a folder."
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config.yaml of the training run"
    )
    parser.add_argument(
        "--images", required=True, metavar="FOLDER", help="images, also in subfolders"
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="for pictures and predictions.json"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="detector (default: last checkpoint of the run)"
    )
    parser.add_argument(
        "--class-names", default="", metavar="A,B,C", help="for weights that do not hold them"
    )
    parser.add_argument(
        "--score", type=float, default=0.5, help="least score of a prediction (default 0.5)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes of the configuration")
    return parser


def _check_output(output: Path, images: Path) -> None:
    if output.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"--output {output} is inside --images {images}, so that pictures would count as "
            "images: choose another folder"
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} is not an empty folder: choose another one")


def _last_checkpoint(config: str) -> str:
    weights = record.last_checkpoint(Path(config).parent)
    if weights is None:
        raise UserError(
            f"the folder of --config-file {config} holds no checkpoint: give the detector with "
            "--weights, or config.yaml in the OUTPUT_DIR of a training run"
        )
    return weights


def _class_names(weights: str, given: str) -> list[str]:
    """Returns the class names of a detector, from its file if that holds them."""
    if not weights.endswith(".pth") or "://" in weights:
        raise UserError(f"--weights is {weights}; expected a .pth file on this machine")
    names = [name.strip() for name in given.split(",") if name.strip()]
    held = record.read_classes(weights)
    if held is None and not names:
        raise UserError(
            f"weights {weights} hold no class names, because they are not a checkpoint of "
            "detection/train_net.py: give --class-names A,B,C in the order of training"
        )
    if held is not None and names and held != names:
        raise UserError(
            f"--class-names is {','.join(names)}, but weights {weights} were trained on "
            f"{','.join(held)}: omit --class-names"
        )
    return held or names


def _configuration(args: argparse.Namespace, classes: int) -> CfgNode:
    cfg = config_file.read(args.config_file)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = classes
    # The same as leaving out predictions afterwards, but faster.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.score
    config_file.override(cfg, args.opts)
    config_file.choose_device(cfg)
    cfg.freeze()
    return cfg


def _check_weights(cfg: CfgNode, weights: str, classes: int) -> None:
    depth, layout = cfg.MODEL.RESNETS.DEPTH, initial_weights.find_layout(cfg.MODEL.BACKBONE.NAME)
    initial_weights.check(weights, depth, layout, classes=classes, unpickle=False)
    loading.check(loading.build(cfg), weights, layout, is_whole=True)


def _predict(
    cfg: CfgNode,
    model: nn.Module,
    source: ImageFiles,
    root: str,
    classes: Sequence[str],
    output: Path,
) -> None:
    """Writes pictures and predictions.json; reports unreadable images and continues.

    Raises:
      UserError: no image is readable, or a file cannot be written.
    """
    results: list[dict[str, Any]] = []
    unreadable = 0
    for number in progress.track(range(len(source)), "predicting"):
        name = os.path.relpath(source.name(number), os.path.expanduser(root))
        try:
            image = _read(source, number)
        except UnreadableImageError as error:
            unreadable += 1
            progress.CONSOLE.message(f"{name} is unreadable ({error})")
            continue
        shapes = find_objects(cfg, model, image)
        results += [to_result(shape, number + 1, name, classes) for shape in shapes]
        picture = io.BytesIO()
        to_pil_image(pictures.draw(image, shapes, classes)).save(picture, "png")
        files.write_file(output / "pictures" / f"{name}.png", picture.getvalue())
    if unreadable == len(source):
        raise UserError(f"none of the {unreadable} images in --images {root} is readable")
    files.write_file(output / "predictions.json", json.dumps(results).encode())
    print(
        f"{len(results)} objects on {len(source) - unreadable} images, {unreadable} unreadable: "
        f"{output}"
    )


def _read(source: ImageFiles, number: int) -> Tensor:
    image = source.read(number)
    height, width = image.shape[1:]
    if datasets.is_elongated(width, height):
        raise UnreadableImageError(f"{width}x{height} pixels are too elongated for detectron2")
    return image
