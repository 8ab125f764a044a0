"""How fast one core turns image files to patches, beside decoding alone and the published way."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from jigclu.benchmark.published import PublishedPatches
from jigclu.benchmark.tables import Table
from jigclu.benchmark.timing import interleaved
from jigclu.data.packed import FORMATS, PackedImages
from jigclu.data.sources import ImageFiles, Source
from jigclu.errors import UserError
from jigclu.pack import PackTask
from jigclu.pretrain import PretrainTask

_SHORTER_SIDE, _QUALITY = 256, 90  # Of the packs, as in gin/pack.gin.


def check_reading(task: PretrainTask, images: int) -> None:
    """Raises UserError unless the source has so many image files."""
    if not 1 <= images <= len(task.source):
        raise UserError(
            f"images is {images}; it must lie in [1, {len(task.source)}], the images of the source"
        )
    name = task.source.name(0)
    if not Path(name).is_file():
        raise UserError(
            f"the source gives {name}, not a file: the part 'reading' needs a folder of images, "
            "such as ImageFolder or UnlabelledImages"
        )


def measure_reading(task: PretrainTask, images: int, repetitions: int) -> Table:
    """Measures some images of the source, evenly spread, on one thread.

    Args:
      task: whose patches are read.
      images: of each repetition.
      repetitions: >= 1.

    Raises:
      UserError: no temporary folder can be written.
    """
    spread = range(0, len(task.source), len(task.source) // images)[:images]
    source = ImageFiles("", [task.source.name(index) for index in spread], [], None)
    published = PublishedPatches(
        task.grid,
        task.cross_ratio,
        task.patch_size,
        task.crop_scale,
        task.crop_ratio,
        task.augmentation,
    )
    with _packs(source) as packs, _one_thread():
        readers: dict[str, Callable[[int], object]] = {
            "published: PIL and torchvision's transforms, augmented": lambda index: published.read(
                source.name(index)
            ),
            "files, decoding alone": source.read,
            "files": _patches_of(task, source),
            **{f"packed, {name}": _patches_of(task, pack) for name, pack in packs.items()},
        }
        seconds = interleaved(
            {name: _over(images, read) for name, read in readers.items()},
            repetitions,
            torch.device("cpu"),
            time.process_time,
        )
    rates = {name: images / taken for name, taken in seconds.items()}
    slowest, files = rates[next(iter(rates))], rates["files"]
    return Table(
        title="Reading images, one core",
        columns=("pipeline", "images/s", "against published", "against files"),
        rows=[(name, rate, rate / slowest, rate / files) for name, rate in rates.items()],
        note=(
            f"{images} images to {task.grid**2} patches of {task.patch_size} pixels; seconds of "
            "the processor. The published pipeline augments colours, too, which here the "
            "training device does: see the pieces of a step. Packs have a shorter side of "
            f"{_SHORTER_SIDE} pixels."
        ),
        panels=(("images/s",),),
    )


def _patches_of(task: PretrainTask, source: Source) -> Callable[[int], object]:
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
