"""How fast one core turns image files into patches, compared with decoding and published code."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from jigclu.data.crops import CropSample
from jigclu.data.decode import UnreadableImageError
from jigclu.data.image_files import ImageFiles
from jigclu.data.packed import FORMATS, PackedImages
from jigclu.data.sources import Source
from jigclu.ops.augment import ColorAugmentation, draw_augmentation
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.instruments import Instruments
from jigclu.tasks.benchmark.published import PublishedPatches
from jigclu.tasks.benchmark.timing import Seconds, time_actions
from jigclu.tasks.benchmark.workload import color_augmentation, jigsaw
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask

SHORTER_SIDE = 256  # Pixels, of the packs, as in gin/pack.gin.
_QUALITY = 90  # JPEG, of the packs, as in gin/pack.gin.

Reader = Callable[[int], object]


class ReadingTimes(NamedTuple):
    """Seconds to read so many images, by pipeline."""

    images: int
    seconds: Mapping[str, Seconds]


def check_reading(task: PretrainTask, images: int) -> None:
    """Raises UserError unless the source has so many readable image files."""
    if not 1 <= images <= len(task.source):
        raise UserError(
            f"images is {images}; it must lie in [1, {len(task.source)}], the images of the source"
        )
    for index in _spread_indices(task, images):
        name = task.source.name(index)
        if not Path(name).is_file():
            raise UserError(
                f"the source contains {name}, which is not a file: the part 'reading' needs a "
                "folder of images, such as ImageFolder or UnlabeledImages"
            )
        try:
            task.source.read(index)
        except UnreadableImageError as error:
            raise UserError(f"{name} is unreadable ({error}): remove it to measure") from error


def _spread_indices(task: PretrainTask, images: int) -> list[int]:
    return [index * len(task.source) // images for index in range(images)]


def measure_reading(
    task: PretrainTask, images: int, repetitions: int, instruments: Instruments
) -> ReadingTimes:
    """Reads images of the source, evenly spread, with every pipeline, on one thread.

    Args:
      task: whose patches are read.
      images: per repetition.
      repetitions: >= 1.
      instruments: of the processor.

    Raises:
      UserError: the temporary folder for packs cannot be written.
    """
    names = [task.source.name(index) for index in _spread_indices(task, images)]
    files = ImageFiles("", names, [], None)
    with _packs(files) as packs, _one_thread():
        actions = {name: _read_all(images, read) for name, read in readers(task, files, packs)}
        return ReadingTimes(images, time_actions(actions, repetitions, instruments))


def readers(
    task: PretrainTask, files: Source, packs: Mapping[str, Source]
) -> Iterator[tuple[str, Reader]]:
    """Yields the pipelines by name, each a function of an image's index.

    Args:
      task: whose patches are read.
      files: images to read.
      packs: the same images, by pack format.
    """
    yield "published, PIL", _published_reader(task, files, color_augmentation(task))
    yield "published, PIL, no color changes", _published_reader(task, files, _colorless(task))
    yield "files, decoding only, full size", files.read
    yield "files", _patch_reader(task, files)
    yield "files, augmented on the same core", _augmenting_reader(task, files)
    for name, pack in packs.items():
        yield f"packed, {name}", _patch_reader(task, pack)


def _published_reader(task: PretrainTask, files: Source, settings: ColorAugmentation) -> Reader:
    method = jigsaw(task)
    patches = PublishedPatches(
        method.grid,
        method.cross_ratio,
        method.patch_size,
        method.crop_scale,
        method.crop_ratio,
        settings,
    )
    return lambda index: patches.read(files.name(index))


def _colorless(task: PretrainTask) -> ColorAugmentation:
    return dataclasses.replace(
        color_augmentation(task),
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
    )


def _augmenting_reader(task: PretrainTask, source: Source) -> Reader:
    read, settings = _patch_reader(task, source), task.method.augmentation

    def read_and_augment(index: int) -> object:
        drawn = draw_augmentation(settings, task.seed, index, task.method.crops_per_image)
        return settings(read(index).crops, drawn)

    return read_and_augment


def _patch_reader(task: PretrainTask, source: Source) -> Callable[[int], CropSample]:
    dataset = task.method.dataset(source, task.seed, task.batch_size)
    return lambda index: dataset[0, index]


def _read_all(images: int, read: Reader) -> Callable[[], None]:
    def read_all() -> None:
        for index in range(images):
            read(index)

    return read_all


@contextlib.contextmanager
def _packs(source: Source) -> Iterator[dict[str, PackedImages]]:
    """Yields the images packed in every format, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            PackTask(
                source=source,
                image_format=name,
                shorter_side=SHORTER_SIDE,
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
