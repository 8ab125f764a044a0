"""Images in tar shards, as data sets are published in WebDataset's layout; read in any order.

A sample is the files of one name: 000012.jpg and 000012.cls, its class number in digits.
Where each lies is looked up once a shard, and kept in a folder.
"""

import fnmatch
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size, decode_image
from jigclu.data.sources import EXTENSIONS, digest
from jigclu.system import files, progress
from jigclu.system.errors import UserError

# Where an image lies in its shard, bytes, and its class number or -1.
RECORD = np.dtype([("offset", np.int64), ("length", np.int64), ("label", np.int64)])
_SUFFIX = re.compile(r"[^./]+(\.[^/]*)$")


class WebDatasetImages:
    """A source of the images in all tar shards of a folder, in the order of their names."""

    def __init__(self, root: str, pattern: str, index_folder: str) -> None:
        """Looks up where images lie; the first time every shard is read through.

        Args:
          root: folder of the shards, not compressed.
          pattern: of their names: splits are published side by side, such as
            'imagenet1k-train-*.tar' and 'imagenet1k-validation-*.tar'.
          index_folder: where what was looked up is kept.

        Raises:
          UserError: no shards, one that is damaged or holds no images, or classes of
            a part of the images alone.
        """
        folder = Path(root).expanduser()
        names = os.listdir(folder) if folder.is_dir() else []
        self._shards = [folder / name for name in sorted(fnmatch.filter(names, pattern))]
        if not self._shards:
            raise UserError(
                f"{root} holds no {pattern}: expected the shards of a data set in WebDataset's "
                "layout, such as *.tar"
            )
        kept = Path(index_folder).expanduser()
        shards = progress.track(self._shards, f"indexing the shards of {root}")
        records = [_records(shard, kept) for shard in shards]
        self._records = np.concatenate(records)
        self._first = np.cumsum([0, *map(len, records)])
        labeled = self._records["label"] >= 0
        if labeled.any() and not labeled.all():
            raise UserError(
                f"{root}: {(~labeled).sum():,} of {len(labeled):,} images have no .cls: "
                "expected one for each, or none at all"
            )
        self.labels: list[int] | None = self._records["label"].tolist() if labeled.all() else None
        # Names of the classes are not in the shards.
        count = int(self._records["label"].max()) + 1
        self.classes = [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        record = self._records[index]
        try:
            # Opened for each image: a position that processes share would be moved by all.
            with open(self._shards[self._shard(index)], "rb") as file:
                file.seek(int(record["offset"]))
                data = file.read(int(record["length"]))
        except OSError as error:
            raise UnreadableImageError(str(error)) from error
        return decode_image(data, reduction)

    def name(self, index: int) -> str:
        """Returns the shard and which of its images it is."""
        shard = self._shard(index)
        return f"{self._shards[shard]} image {index - self._first[shard]}"

    def fingerprint(self, deep: bool) -> str:
        """As `Source`."""
        parts: list[object] = [[shard.name for shard in self._shards], self._records.tobytes()]
        if deep:
            parts += [shard.stat().st_mtime_ns for shard in self._shards]
        return digest(*parts)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _records(shard: Path, index_folder: Path) -> Any:
    """Returns a row of RECORD for each image of a shard."""
    stat = shard.stat()
    key = digest(str(shard.resolve()), stat.st_size, stat.st_mtime_ns)
    kept = index_folder / f"{key}.npy"
    if kept.exists():
        rows = np.load(kept, allow_pickle=False)
        if rows.dtype == RECORD:
            return rows
    rows = _looked_up(shard)
    try:
        index_folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(kept, lambda file: np.save(file, rows))
    except OSError as error:
        raise UserError(
            f"index_folder {index_folder} cannot be written ({error.strerror}): give another"
        ) from error
    return rows


def _looked_up(shard: Path) -> Any:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                suffix = _SUFFIX.search(member.name)
                if not member.isfile() or suffix is None:
                    continue
                key = member.name.removesuffix(suffix[1])
                if suffix[1].lower().endswith(EXTENSIONS):
                    if key in images:
                        raise UserError(
                            f"{shard}: {member.name} is a second image of one name; expected one"
                        )
                    images[key] = (member.offset_data, member.size)
                elif suffix[1] == ".cls":
                    file = tar.extractfile(member)
                    assert file is not None
                    labels[key] = int(file.read())
        # tarfile takes a file that ends between two members for a whole one.
        if os.path.getsize(shard) < tar.offset:
            raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{shard} is damaged, or no tar that is not compressed ({error}): copy it again"
        ) from error
    if not images:
        raise UserError(f"{shard} holds no images: expected files named {' '.join(EXTENSIONS)}")
    rows = [(*images[key], labels.get(key, -1)) for key in images]
    return np.array(rows, RECORD)
