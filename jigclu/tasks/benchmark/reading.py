"""How fast one core turns image files to patches, beside decoding alone and the published way."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from jigclu.data.crops import CropSample
from jigclu.data.decode import UnreadableImageError
from jigclu.data.packed import FORMATS, PackedImages
from jigclu.data.sources import ImageFiles, Source
from jigclu.ops.augment import AugmentationSettings, augment, draw_augmentation
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.published import PublishedPatches
from jigclu.tasks.benchmark.tables import Table, spread
from jigclu.tasks.benchmark.timing import interleaved
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask

_SHORTER_SIDE, _QUALITY = 256, 90  # Of the packs, as in gin/pack.gin.


def check_reading(task: PretrainTask, images: int) -> None:
    """Raises UserError unless the source has so many image files."""
    if not 1 <= images <= len(task.source):
        raise UserError(
            f"images is {images}; it must lie in [1, {len(task.source)}], the images of the source"
        )
    for index in _chosen(task, images):
        name = task.source.name(index)
        if not Path(name).is_file():
            raise UserError(
                f"the source gives {name}, not a file: the part 'reading' needs a folder of "
                "images, such as ImageFolder or UnlabeledImages"
            )
        try:
            task.source.read(index)
        except UnreadableImageError as error:
            raise UserError(f"{name} is unreadable ({error}): remove it to measure") from error


def _chosen(task: PretrainTask, images: int) -> list[int]:
    return [index * len(task.source) // images for index in range(images)]


def measure_reading(task: PretrainTask, images: int, repetitions: int) -> Table:
    """Measures some images of the source, evenly spread, on one thread.

    Args:
      task: whose patches are read.
      images: of each repetition.
      repetitions: >= 1.

    Raises:
      UserError: no temporary folder can be written.
    """
    names = [task.source.name(index) for index in _chosen(task, images)]
    source = ImageFiles("", names, [], None)
    with _packs(source) as packs, _one_thread():
        readers: dict[str, Callable[[int], object]] = {
            "published, PIL": _published(task, source, task.augmentation),
            "published, PIL, colors left alone": _published(task, source, _unchanged(task)),
            "files, decoding alone, at full size": source.read,
            "files": _patches_of(task, source),
            "files, augmented on the same core": _augmented(task, source),
            **{f"packed, {name}": _patches_of(task, pack) for name, pack in packs.items()},
        }
        seconds = interleaved(
            {name: _over(images, read) for name, read in readers.items()},
            repetitions,
            torch.device("cpu"),
            time.process_time,
        )
    rates = {name: images / taken.median for name, taken in seconds.items()}
    published, files = rates["published, PIL"], rates["files"]
    return Table(
        title="Reading images, one core",
        columns=("pipeline", "images/s", "least to most", "against published", "against files"),
        rows=[
            (name, rate, spread(seconds[name], images), rate / published, rate / files)
            for name, rate in rates.items()
        ],
        note=(
            f"{images} images to {task.grid**2} patches of {task.patch_size} pixels; seconds of "
            "the processor. The published pipeline changes colors, too; here the training "
            "device does, in large batches: one core would by itself as the row says. Packs have a "
            f"shorter side of {_SHORTER_SIDE} pixels."
        ),
        panels=(("images/s",),),
    )


def _published(
    task: PretrainTask, source: Source, settings: AugmentationSettings
) -> Callable[[int], object]:
    patches = PublishedPatches(
        task.grid, task.cross_ratio, task.patch_size, task.crop_scale, task.crop_ratio, settings
    )
    return lambda index: patches.read(source.name(index))


def _unchanged(task: PretrainTask) -> AugmentationSettings:
    return dataclasses.replace(
        task.augmentation, jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0
    )


def _augmented(task: PretrainTask, source: Source) -> Callable[[int], object]:
    read, settings = _patches_of(task, source), task.augmentation

    def read_and_augment(index: int) -> object:
        drawn = draw_augmentation(settings, task.seed, index, task.grid**2)
        return augment(read(index).crops, drawn, settings)

    return read_and_augment


def _patches_of(task: PretrainTask, source: Source) -> Callable[[int], CropSample]:
    dataset = dataclasses.replace(task, source=source, smaller_patches=()).dataset()
    return lambda index: dataset[0, index]


def _over(images: int, read: Callable[[int], object]) -> Callable[[], None]:
    def all_of_them() -> None:
        for index in range(images):
            read(index)

    return all_of_them


@contextlib.contextmanager
def _packs(source: Source) -> Iterator[dict[str, PackedImages]]:
    """Yields the images packed in every format, in a folder that goes with the block."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            PackTask(
                source=source,
                format=name,
                shorter_side=_SHORTER_SIDE,
                quality=_QUALITY,
                images_per_shard=len(source),
                workers=1,
            ).run(Path(folder) / name, "")
        yield {name: PackedImages(str(Path(folder) / name), False) for name in FORMATS}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
