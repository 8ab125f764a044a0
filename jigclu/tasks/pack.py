"""Packs the images of a source into shards, which read faster than single files."""

import io
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.decode import UnreadableImageError, has_one_color
from jigclu.data.loader import set_up_worker, worker_context
from jigclu.data.packed import FORMATS, INDEX, RECORD, SHARD_FIELDS, build_index, shard_files
from jigclu.data.sources import Source, digest
from jigclu.system import files, progress, signals
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError, check, printable
from jigclu.system.machine import Auto, check_workers, choose_pack_workers
from jigclu.training.loop import RunResult
from jigclu.training.monitor import Monitor


class _Shard(NamedTuple):
    """Contents of a finished shard.

    unreadable: names of images that were left out.
    one_color: names of images whose pixels are all the same.
    """

    images: int
    bytes: int
    sha256: str
    records_sha256: str
    unreadable: list[str]
    one_color: list[str]

    def is_whole(self, images: Path, records: Path) -> bool:
        """Returns whether its files exist with the checksums with which they were written."""
        return (
            images.exists()
            and records.exists()
            and files.sha256(images) == self.sha256
            and files.sha256(records) == self.records_sha256
        )


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """Writes the images of a source, in order, to shards in the workdir.

    Attributes:
      source: images to pack, with their labels.
      image_format: "jpeg" or "raw".
      shorter_side: pixels to which the shorter side of larger images is resized.
      quality: of JPEG, in [1, 100].
      images_per_shard: images of the source per shard; a shard is built in memory.
      workers: processes, each of which writes whole shards; "auto" uses every core.
    """

    source: Source
    image_format: str
    shorter_side: int
    quality: int
    images_per_shard: int
    workers: int | Auto

    def __post_init__(self) -> None:
        known = f"one of {', '.join(FORMATS)}"
        check(self.image_format in FORMATS, "image_format", self.image_format, known)
        check(1 <= self.quality <= 100, "quality", self.quality, "in [1, 100]")
        check_workers(self.workers, least=1)
        for name in ("shorter_side", "images_per_shard"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")

    def check(self, workdir: Path) -> None:
        """Raises UserError for a workdir with a pack of other images or settings."""
        begun = workdir / "settings.json"
        if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != self._settings():
            raise UserError(
                f"{workdir} holds a pack of other images or settings: use another --workdir, "
                "or remove this one"
            )

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in one line."""
        del workdir
        return (
            f"packs: {len(self.source):,} images, {self.images_per_shard:,} per shard, "
            f"{self.image_format}, shorter side at most {self.shorter_side} pixels"
        )

    def run(self, workdir: Path, config: str) -> RunResult:
        """Writes the missing shards, then pack.json; returns no scores.

        Raises:
          UserError: no image can be read, or a file cannot be written.
        """
        del config
        if launched_rank() == 0:
            self._run(workdir)
        return RunResult({}, None)

    def _run(self, workdir: Path) -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _write_json(workdir / "settings.json", self._settings())
            with Monitor.of_one_step(workdir, is_main=True) as monitor:
                shards = self._shards(workdir)
                self._finish(workdir, shards, monitor)
        except KeyboardInterrupt as error:
            raise signals.Stopped(
                "finished shards are kept, and the same command packs the others"
            ) from error
        except OSError as error:
            raise UserError(
                f"{workdir} cannot be written ({error.strerror or error}): free some disk space "
                "or use another --workdir; finished shards are kept"
            ) from error

    def _count(self) -> int:
        return -(-len(self.source) // self.images_per_shard)

    def _settings(self) -> dict[str, Any]:
        """Returns the settings that determine the contents of shards."""
        return {
            "images": digest(self.source.fingerprint(deep=True)),
            "format": self.image_format,
            "shorter_side": self.shorter_side,
            "quality": self.quality if self.image_format == "jpeg" else None,
            "images_per_shard": self.images_per_shard,
        }

    def _shards(self, workdir: Path) -> list[_Shard]:
        shards: list[_Shard] = []
        try:
            with ProcessPoolExecutor(
                choose_pack_workers(self.workers).value,
                worker_context(),
                _set_up_worker,
                (self, workdir),
            ) as pool:
                try:
                    # A process that is interrupted while it starts is in no list of children.
                    with signals.deferred():
                        numbers = range(self._count())
                        futures = [pool.submit(_write_shard_of_worker, n) for n in numbers]
                    signals.check()
                    for future in progress.track(futures, "packing shards", len(futures)):
                        shards.append(future.result())
                except BaseException:
                    # The pool would wait for the shards in progress, which can take minutes. Of a
                    # broken pool it asks the workers by SIGTERM, which they ignore, and would wait
                    # for ever.
                    for child in multiprocessing.active_children():
                        child.kill()
                    raise
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker process ended after {len(shards)} shards, perhaps killed for lack of "
                "memory: use fewer pack.workers or pack.images_per_shard; finished shards are kept"
            ) from error
        return shards

    def _finish(self, workdir: Path, shards: list[_Shard], monitor: Monitor) -> None:
        images = sum(shard.images for shard in shards)
        unreadable = [name for shard in shards for name in shard.unreadable]
        if unreadable:
            (workdir / "unreadable.txt").write_text(
                printable("\n".join(unreadable)) + "\n", encoding="utf-8"
            )
            monitor.message(
                f"{len(unreadable)} unreadable images were left out, the first of them "
                f"{unreadable[0]}; {workdir / 'unreadable.txt'} names all"
            )
        one_color = [name for shard in shards for name in shard.one_color]
        if one_color:
            monitor.message(
                f"{len(one_color)} images have only one color, the first of them {one_color[0]}"
            )
        if not images:
            raise UserError(f"none of the {len(unreadable)} images can be read: check the source")
        entries = [{name: getattr(shard, name) for name in SHARD_FIELDS} for shard in shards]
        _write_json(
            workdir / INDEX, build_index(self.image_format, list(self.source.classes), entries)
        )
        total = sum(shard.bytes for shard in shards)
        monitor.message(f"{images:,} images, {total / 1e6:,.1f} MB, in {workdir}")


# Sent to each worker process once: a task names all images, which can take many megabytes.
_jobs: list[tuple[PackTask, Path]] = []


def _set_up_worker(task: PackTask, workdir: Path) -> None:
    set_up_worker()
    _jobs[:] = [(task, workdir)]


def _write_shard_of_worker(number: int) -> _Shard:
    (job,) = _jobs
    return _write_shard(*job, number)


def _write_shard(task: PackTask, workdir: Path, number: int) -> _Shard:
    """Writes a shard unless it is finished, as its summary, which is written last, shows."""
    images, records = shard_files(workdir, number)
    summary = images.with_suffix(".json")
    if summary.exists():
        # Summaries of earlier versions have no images of one color.
        contents = {"one_color": []} | json.loads(summary.read_text(encoding="utf-8"))
        shard = _Shard(**contents)
        if shard.is_whole(images, records):
            return shard
    rows: list[tuple[int, ...]] = []
    unreadable: list[str] = []
    one_color: list[str] = []
    data = io.BytesIO()
    first = number * task.images_per_shard
    for index in range(first, min(first + task.images_per_shard, len(task.source))):
        try:
            image = _shrink(task.source.read(index), task.shorter_side)
        except UnreadableImageError as error:
            unreadable.append(f"{task.source.name(index)} ({error})")
            continue
        if has_one_color(image):
            one_color.append(task.source.name(index))
        label = -1 if task.source.labels is None else task.source.labels[index]
        offset = data.tell()
        data.write(_encode(image, task.image_format, task.quality))
        rows.append((offset, data.tell() - offset, *image.shape[1:], label, index))
    files.write_atomically(images, lambda file: file.write(data.getbuffer()))
    files.write_atomically(records, lambda file: np.save(file, np.array(rows, RECORD)))
    checksums = files.sha256(images), files.sha256(records)
    shard = _Shard(len(rows), data.tell(), *checksums, unreadable, one_color)
    _write_json(summary, shard._asdict())
    return shard


def _shrink(image: Tensor, shorter_side: int) -> Tensor:
    """Shrinks uint8 [3, height, width] to a shorter side in pixels, if it is larger."""
    if min(image.shape[1:]) <= shorter_side:
        return image
    return transforms.resize(image, [shorter_side], antialias=True)


def _encode(image: Tensor, image_format: str, quality: int) -> bytes:
    if image_format == "raw":
        return image.numpy().tobytes()
    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    text = json.dumps(contents, indent=1)
    files.write_atomically(path, lambda file: file.write(text.encode()))
