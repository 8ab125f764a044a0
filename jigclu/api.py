"""The Python API: encoders, features of images, and pre-training; docs/api.md shows how.

The package re-exports these names. The functions import torchvision, gin and TensorBoard only when
they are called, because these libraries take seconds to load.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from jigclu.ops.normalize import pool
from jigclu.system import progress
from jigclu.system.errors import UserError, check, naming

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

# Batches that each worker process keeps ready.
_PREFETCH = 2
# Seconds to wait for a batch of them.
_TIMEOUT = 600.0


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

    A network of timm is recognized by its name, which runs and .safetensors exports of this project
    and checkpoints of timm's training script contain.

    A pre-training run that keeps an average of its encoder gives the average.

    Its transform is the evaluation preprocessing of the run that wrote the weights, or of the
    export that wrote a .safetensors file. If that run had no evaluation, images are cropped to the
    size of its training inputs. For weights of other projects they are resized to 256 and cropped
    to 224 pixels, as usual for ImageNet.

    Args:
      source: anything that `init_from` accepts: a file of weights (of this project, the published
        code, torchvision, timm, MoCo, SimSiam and others, also .safetensors), a workdir, the
        folder of an export, or "jigclu_200e", which is downloaded once.

    Raises:
      UserError: the weights are missing or unreadable, or the file has no complete encoder,
        or several.
    """
    from jigclu.models.encoder import create_encoder
    from jigclu.training import initial_weights
    from jigclu.training.preprocessing import recorded_transform

    contents = initial_weights.contents(os.fspath(source))
    weights = initial_weights.select(contents, os.fspath(source))
    with torch.device("meta"):  # Without memory, and without random draws.
        encoder = create_encoder(*weights.architecture)
    tensors = {name: weights.tensors[f"encoder.{name}"].float() for name in encoder.state_dict()}
    encoder.load_state_dict(tensors, assign=True)
    return FeatureExtractor(encoder, recorded_transform(contents)).eval()


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
    from jigclu.training.features import choose_settings, encode_in_order
    from jigclu.training.settings import Loading

    kind = type(encoder).__name__
    check(isinstance(encoder, FeatureExtractor), "encoder", kind, "a result of load_encoder")
    transform, kind = encoder.transform, type(encoder.transform).__name__
    check(isinstance(transform, EvalTransform), "encoder.transform", kind, "an EvalTransform")
    check(batch_size >= 1, "batch_size", batch_size, "1 or more")
    check(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    loading = Loading(workers=workers, prefetch=_PREFETCH, timeout=_TIMEOUT, most_unreadable=0.0)
    source = _open_source(images)
    device = next(encoder.parameters()).device
    settings = choose_settings(transform, batch_size, loading, device, PRECISIONS[precision])
    dataset = ImageDataset(source=source, transform=transform)
    features = torch.cat(list(encode_in_order(encoder.encoder, dataset, settings)))
    labels = None if source.labels is None else torch.tensor(source.labels)
    return Features(features, [source.name(index) for index in range(len(source))], labels)


def pretrain(
    gin_files: Sequence[_Path],
    bindings: Sequence[str] = (),
    workdir: _Path | None = None,
    allow_imports: bool = False,
) -> "RunResult":
    """Pre-trains as the command does; the same call again resumes an interrupted run.

    Worker processes that read images import the main script, which then needs
    `if __name__ == "__main__":`.

    Args:
      gin_files: paths from the working directory, or names of the project's own files, such as
        gin/demo.gin; later ones win.
      bindings: over the files, such as "pretrain.batch_size = 512".
      workdir: folder of checkpoints, logs and configuration; runs/<name of the last gin file
        outside gin/base> by default.
      allow_imports: whether the files may import Python modules, which runs their code.

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
        loaded = config.load(files, bindings, folder, allow_imports)
        configuration = loaded.for_workdir(folder)
        task = type(configuration.task)
        if not issubclass(task, PretrainTask):
            raise UserError(
                f"gin_files is {files}, which configure {task.__name__}; expected pre-training; "
                "run other tasks with the command jigclu"
            )
        configuration.check(folder)
        return configuration.run(folder)


def _open_source(images: "_Path | Source") -> "Source":
    from jigclu.data.folders import scan_folder

    if isinstance(images, (str, os.PathLike)):
        with naming("images"):
            return scan_folder(os.fspath(images))
    is_source = hasattr(images, "read") and hasattr(images, "labels")
    check(is_source, "images", type(images).__name__, "a folder or a source of images")
    return images
