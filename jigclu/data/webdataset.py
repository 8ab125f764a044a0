"""Images in tar shards with WebDataset's layout, read in any order.

A sample consists of files with a common name: 000012.jpg, and 000012.cls with the class number
in digits. The positions of images are indexed once per shard and saved in a folder.
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
from jigclu.data.image_files import EXTENSIONS
from jigclu.data.sources import digest
from jigclu.system import files, progress
from jigclu.system.dry_run import is_dry_run
from jigclu.system.errors import UserError

# Position of an image in its shard, bytes; class number, -1 if unlabeled.
RECORD = np.dtype([("offset", np.int64), ("length", np.int64), ("label", np.int64)])
_SUFFIX = re.compile(r"[^./]+(\.[^/]*)$")


class WebDatasetImages:
    """A source of the images in the tar shards of a folder, in the order of shard names."""

    def __init__(self, root: str, pattern: str, index_folder: str) -> None:
        """Indexes the shards; each is read completely the first time.

        Args:
          root: folder of the uncompressed shards.
          pattern: of shard names; splits often share a folder, as in 'imagenet1k-train-*.tar' and
            'imagenet1k-validation-*.tar'.
          index_folder: where the indexes are saved.

        Raises:
          UserError: there are no shards, a shard is corrupt or contains no images, or only some
            images have labels.
        """
        folder = Path(root).expanduser()
        names = os.listdir(folder) if folder.is_dir() else []
        self._shards = [folder / name for name in sorted(fnmatch.filter(names, pattern))]
        if not self._shards:
            raise UserError(
                f"root {root} contains no {pattern}: expected tar shards in WebDataset's layout"
            )
        saved = Path(index_folder).expanduser()
        shards = progress.track(self._shards, f"indexing the shards of {root}")
        records = [_load_records(shard, saved) for shard in shards]
        self._records = np.concatenate(records)
        self._first = np.cumsum([0, *map(len, records)])
        labeled = self._records["label"] >= 0
        if labeled.any() and not labeled.all():
            raise UserError(
                f"{root}: {(~labeled).sum():,} of {len(labeled):,} images have no .cls file: "
                "expected one for every image or none at all"
            )
        self.labels: list[int] | None = self._records["label"].tolist() if labeled.all() else None
        # Shards do not contain the names of classes.
        count = int(self._records["label"].max()) + 1
        self.classes = [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        record = self._records[index]
        try:
            # Opened for each image, as forked processes would share the position of one file.
            with open(self._shards[self._shard(index)], "rb") as file:
                file.seek(int(record["offset"]))
                data = file.read(int(record["length"]))
        except OSError as error:
            raise UnreadableImageError(str(error)) from error
        return decode_image(data, reduction)

    def name(self, index: int) -> str:
        """Returns the path of the shard and the position in it."""
        shard = self._shard(index)
        return f"{self._shards[shard]} image {index - self._first[shard]}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        parts: list[object] = [[shard.name for shard in self._shards], self._records.tobytes()]
        if deep:
            parts += [shard.stat().st_mtime_ns for shard in self._shards]
        return digest(*parts)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _load_records(shard: Path, index_folder: Path) -> Any:
    """Returns one RECORD per image of a shard, from the saved index if there is one."""
    stat = shard.stat()
    key = digest(str(shard.resolve()), stat.st_size, stat.st_mtime_ns)
    saved = index_folder / f"{key}.npy"
    if saved.exists():
        rows = np.load(saved, allow_pickle=False)
        if rows.dtype == RECORD:
            return rows
    rows = _index_shard(shard)
    if is_dry_run():
        return rows
    try:
        index_folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(saved, lambda file: np.save(file, rows))
    except OSError as error:
        raise UserError(
            f"index_folder {index_folder} cannot be written ({error.strerror}): use another one"
        ) from error
    return rows


def _index_shard(shard: Path) -> Any:
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
                            f"{shard}: {member.name} is a second image of one sample; expected one"
                        )
                    images[key] = (member.offset_data, member.size)
                elif suffix[1] == ".cls":
                    file = tar.extractfile(member)
                    assert file is not None
                    labels[key] = int(file.read())
        # tarfile does not notice a file that was truncated between two members.
        if os.path.getsize(shard) < tar.offset:
            raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{shard} is corrupt or not an uncompressed tar file ({error}): copy it again"
        ) from error
    if not images:
        raise UserError(f"{shard} contains no images: expected files named {' '.join(EXTENSIONS)}")
    rows = [(*images[key], labels.get(key, -1)) for key in images]
    return np.array(rows, RECORD)
