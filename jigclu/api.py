"""The Python API: encoders, features of images, and pre-training; docs/api.md shows how.

The package re-exports these names. The functions import torchvision, gin and TensorBoard only when
they are called, because these libraries take seconds to load.
"""

import ast
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from jigclu.ops.normalize import pool
from jigclu.system import collectives, progress
from jigclu.system.errors import UserError, check
from jigclu.system.tensor_files import METADATA

if TYPE_CHECKING:
    from jigclu.data.sources import Source
    from jigclu.data.transform import EvalTransform
    from jigclu.models.encoder import Encoder
    from jigclu.training.loop import RunResult

__all__ = [
    "FeatureExtractor",
    "Features",
    "UserError",
    "extract_features",
    "load_encoder",
    "pretrain",
]

_Path = str | os.PathLike[str]

# Evaluation preprocessing of ImageNet.
_IMAGENET = {
    "resize": 256,
    "crop": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
# Bindings recorded in a checkpoint that describe the encoder's images; their configurables differ
# between tasks, methods and versions.
_RECORDED = re.compile(
    r"^\w+\.(resize|crop|mean|std|view_size|grid|patch_size) = (.+)$", re.MULTILINE
)
# Batches that each worker process keeps ready.
_PREFETCH = 2
# Rows of features that ranks exchange at a time; bounds the memory on their devices.
_ROWS = 8192


class FeatureExtractor(nn.Module):
    """An encoder with global average pooling, and the preprocessing of its images.

    Attributes:
      encoder: network up to its last feature map; parameters have torchvision's names.
      transform: maps one image, of PIL or uint8 [3, height, width], to float32 [3, crop, crop].
        Assign another `EvalTransform` to change the preprocessing.
    """

    def __init__(self, encoder: "Encoder", transform: "EvalTransform") -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform

    @property
    def channels(self) -> int:
        """Number of features per image."""
        return self.encoder.channels

    def forward(self, images: Tensor) -> Tensor:
        """Maps images from `transform`, float32 [batch, 3, height, width], to their features.

        Returns:
          float32 [batch, channels]: means over the last feature map.
        """
        return pool(self.encoder(images))


class Features(NamedTuple):
    """Features of images, in the order of their source.

    features: float32 [images, channels], on the CPU.
    paths: of the image files; a source without files gives names of its images instead.
    labels: int64 [images], class numbers from 0; None if the images are unlabeled.
    """

    features: Tensor
    paths: list[str]
    labels: Tensor | None


def load_encoder(source: _Path) -> FeatureExtractor:
    """Loads an encoder in eval mode, on the CPU; recognizes the ResNet from its weights.

    Its transform is the evaluation preprocessing of the run that wrote the weights, or of the
    export that wrote a .safetensors file. If that run had no evaluation, images are cropped to the
    size of its training inputs. For weights of other projects they are resized to 256 and cropped
    to 224 pixels, as usual for ImageNet.

    Args:
      source: anything that `init_from` accepts: a file of weights (of this project, the published
        code, torchvision, timm, MoCo, SimSiam and others, also .safetensors), a workdir, the
        folder of an export, or "jigclu_200e", which is downloaded once.

    Raises:
      UserError: the weights are missing or unreadable, or the file has no complete ResNet, or
        several.
    """
    from jigclu.models.encoder import create_encoder
    from jigclu.training import initial_weights

    contents = initial_weights.contents(os.fspath(source))
    weights = initial_weights.select(contents, os.fspath(source))
    with torch.device("meta"):  # Without memory, and without random draws.
        encoder = create_encoder(*weights.architecture)
    tensors = {name: weights.tensors[f"encoder.{name}"].float() for name in encoder.state_dict()}
    encoder.load_state_dict(tensors, assign=True)
    return FeatureExtractor(encoder, _recorded_transform(contents)).eval()


def extract_features(
    encoder: FeatureExtractor,
    images: "_Path | Source",
    *,
    batch_size: int = 64,
    workers: int | Literal["auto"] = 0,
    precision: str = "float32",
) -> Features:
    """Computes the features of all images in a folder or source, on the encoder's device.

    The encoder runs in eval mode, and is left in the mode that it was in. In a process group, every
    rank encodes a share of the images, and all ranks return the features of all images.

    Args:
      encoder: from `load_encoder`.
      images: folder, whose images are read recursively in the order of their paths; if all of
        them are in subfolders, the subfolders are the classes. Or a source, such as
        `jigclu.data.folders.ImageFolder`.
      batch_size: images encoded at a time, per process.
      workers: processes that read images; 0 reads in this process, "auto" chooses by the number
        of cores. They import the main script, which then needs `if __name__ == "__main__":`.
      precision: "float32", or "bfloat16" or "float16" by autocast.

    Raises:
      UserError: an argument is invalid, the folder has no images, an image is unreadable, or a
        feature is not finite.
    """
    from jigclu.data.images import ImageDataset
    from jigclu.data.transform import EvalTransform
    from jigclu.system.machine import PRECISIONS
    from jigclu.training.features import choose_settings, encode
    from jigclu.training.settings import Loading

    kind = type(encoder).__name__
    check(isinstance(encoder, FeatureExtractor), "encoder", kind, "a result of load_encoder")
    transform, kind = encoder.transform, type(encoder.transform).__name__
    check(isinstance(transform, EvalTransform), "encoder.transform", kind, "an EvalTransform")
    check(batch_size >= 1, "batch_size", batch_size, "1 or more")
    check(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    loading = Loading(workers=workers, prefetch=_PREFETCH)
    source = _open_source(images)
    device = next(encoder.parameters()).device
    settings = choose_settings(transform, batch_size, loading, device, PRECISIONS[precision])
    dataset = ImageDataset(source=source, transform=transform)
    features = torch.zeros(len(source), encoder.channels)
    for rows, batch in encode(encoder.encoder, dataset, settings):
        features[batch.image_index] = rows.cpu()
    # Every row was filled by one rank and is 0 elsewhere.
    for rows in features.split(_ROWS):
        rows.copy_(collectives.sum_over_ranks(rows.to(device)))
    labels = None if source.labels is None else torch.tensor(source.labels)
    return Features(features, [source.name(index) for index in range(len(source))], labels)


def pretrain(
    gin_files: Sequence[_Path], bindings: Sequence[str] = (), workdir: _Path | None = None
) -> "RunResult":
    """Pre-trains as the command does; the same call again resumes an interrupted run.

    Worker processes that read images import the main script, which then needs
    `if __name__ == "__main__":`.

    Args:
      gin_files: paths from the working directory, or names of the project's own files, such as
        gin/demo.gin; later ones win.
      bindings: over the files, such as "pretrain.batch_size = 512".
      workdir: folder of checkpoints, logs and configuration; runs/<name of the last gin file>
        by default.

    Returns:
      The last scores, by name, and the path of the last checkpoint.

    Raises:
      UserError: the configuration is invalid, runs another task, or does not match the run in
        the workdir; or training failed, for example because the loss is not finite.
    """
    from jigclu import config
    from jigclu.tasks.pretrain import PretrainTask

    for name, value in (("gin_files", gin_files), ("bindings", bindings)):
        check(not isinstance(value, (str, os.PathLike)), name, value, "a list")
    check(len(gin_files) > 0, "gin_files", gin_files, 'a list of files, such as ["gin/demo.gin"]')
    files = [str(file) for file in gin_files]
    folder = config.default_workdir(files) if workdir is None else Path(workdir)
    with progress.CONSOLE:
        configuration = config.load(files, bindings).for_workdir(folder)
        task = type(configuration.task)
        if not issubclass(task, PretrainTask):
            raise UserError(
                f"gin_files is {files}, which configure {task.__name__}; expected pre-training; "
                "run other tasks with the command jigclu"
            )
        configuration.check(folder)
        return configuration.run(folder)


def _recorded_transform(contents: Mapping[Any, Any]) -> "EvalTransform":
    """Returns the preprocessing for an encoder, as `load_encoder` describes it.

    Args:
      contents: of the file of the encoder.
    """
    from jigclu.data.transform import EvalTransform
    from jigclu.models.weights import METADATA_KEY

    config = contents.get("config")
    found = dict(_RECORDED.findall(config)) if isinstance(config, str) else {}
    values = {name: ast.literal_eval(value) for name, value in found.items()}
    exported = json.loads(contents.get(METADATA, {}).get(METADATA_KEY, "{}"))
    values |= {
        name: tuple(value) if isinstance(value, list) else value for name, value in exported.items()
    }
    side = values.get("view_size", values.get("grid", 0) * values.get("patch_size", 0))
    if "crop" not in values and side:
        values["crop"] = side
        values["resize"] = round(side * _IMAGENET["resize"] / _IMAGENET["crop"])
    return EvalTransform(**{name: values.get(name, usual) for name, usual in _IMAGENET.items()})


def _open_source(images: "_Path | Source") -> "Source":
    from jigclu.data.folders import open_folder

    if isinstance(images, (str, os.PathLike)):
        return open_folder(os.fspath(images))
    is_source = hasattr(images, "read") and hasattr(images, "labels")
    check(is_source, "images", type(images).__name__, "a folder or a source of images")
    return images
