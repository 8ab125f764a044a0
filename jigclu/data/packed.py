"""Images in few large files that read faster than a tree of small ones.

A pack is a folder of shards. Shard n is shard_n.bin, its images one after another, and
shard_n.npy, a row of `RECORD` each, written after it. pack.json comes last of all and
makes the pack whole: images are JPEG files, or raw bytes that need no decoding, of which
a crop reads its own part alone.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size, decode_upright_jpeg
from jigclu.data.sources import digest
from jigclu.system import files, progress
from jigclu.system.errors import UserError

FORMATS = ("jpeg", "raw")
# Where an image lies in its shard, bytes; its sides, pixels; class number or -1; and which
# image of the source it was.
RECORD = np.dtype(
    [
        ("offset", np.int64),
        ("length", np.int64),
        ("height", np.int32),
        ("width", np.int32),
        ("label", np.int32),
        ("source_index", np.int64),
    ]
)
INDEX = "pack.json"
# What the index tells of every shard.
SHARD_FIELDS = ("images", "bytes", "sha256", "records_sha256")


def shard_files(root: Path, number: int) -> tuple[Path, Path]:
    """Returns the paths of a shard's images and of its records."""
    return root / f"shard_{number:05d}.bin", root / f"shard_{number:05d}.npy"


class PackedImages:
    """A source of the images of a pack, mapped into memory: their order is the packed one's."""

    def __init__(self, root: str, verify: bool) -> None:
        """Opens a pack; the sizes of its files are looked at in any case.

        Args:
          root: folder of the pack.
          verify: reads every shard once, and compares its checksum.

        Raises:
          UserError: no pack, one that is not whole, or damaged.
        """
        self._root = Path(root).expanduser()
        contents = _read_index(self._root)
        self.classes: list[str] = contents["classes"]
        self._is_raw = contents["format"] == "raw"
        self._fingerprint: str = contents["fingerprint"]
        shards = progress.track(contents["shards"], f"opening the shards of {root}")
        records = [
            _open_shard(self._root, number, shard, verify) for number, shard in enumerate(shards)
        ]
        self._records = np.concatenate(records)
        self._first = np.cumsum([0, *map(len, records)])
        self.labels: list[int] | None = self._records["label"].tolist() if self.classes else None
        self._maps: dict[int, np.memmap[Any, np.dtype[np.uint8]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Every process maps for itself; a pickled map would be a copy of the data.
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError.

        Of a raw pack it is the map itself: a crop reads no more than its own pages.
        """
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        record = self._records[index]
        data = self._map(shard)[record["offset"] : record["offset"] + record["length"]]
        if not self._is_raw:
            sides = int(record["height"]), int(record["width"])
            return decode_upright_jpeg(torch.from_numpy(data), *sides, reduction)
        return torch.from_numpy(data).view(3, int(record["height"]), int(record["width"]))

    def name(self, index: int) -> str:
        """Returns the shard and which of its images it is."""
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return f"{shard_files(self._root, shard)[0]} image {index - self._first[shard]}"

    def fingerprint(self, deep: bool) -> str:
        """As `Source`; the checksums of the shards tell what the images hold."""
        del deep
        return self._fingerprint

    def _map(self, shard: int) -> "np.memmap[Any, np.dtype[np.uint8]]":
        if shard not in self._maps:
            path = shard_files(self._root, shard)[0]
            try:
                # Copy-on-write: torch takes no read-only memory without a warning.
                self._maps[shard] = np.memmap(path, np.uint8, mode="c")
            except OSError as error:
                raise UnreadableImageError(f"{path}: {error.strerror}") from error
        return self._maps[shard]


def index_of(format: str, classes: list[str], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what pack.json holds.

    Args:
      format: of `FORMATS`.
      classes: of the source.
      shards: of each its images and bytes, and the SHA-256 of those and of its records.
    """
    checksums = [(shard["sha256"], shard["records_sha256"]) for shard in shards]
    fingerprint = digest("pack", format, classes, checksums)
    return {"format": format, "classes": classes, "fingerprint": fingerprint, "shards": shards}


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    if not path.is_file():
        raise UserError(
            f"{root} holds no {INDEX}: it is no pack, or one that is not finished; "
            "make it, or go on with it, by gin/pack.gin"
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["format"] not in FORMATS or not contents["shards"]:
            raise ValueError(f"format {contents['format']!r}, {len(contents['shards'])} shards")
        absent = {
            name for shard in contents["shards"] for name in SHARD_FIELDS if name not in shard
        }
        if absent:
            raise ValueError(f"shards without {', '.join(sorted(absent))}")
        return dict(contents)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): pack the images again") from error


def _open_shard(root: Path, number: int, shard: dict[str, Any], verify: bool) -> Any:
    """Returns the records of a shard that is as the index says."""
    images, records = shard_files(root, number)
    try:
        size = os.path.getsize(images)
        rows = np.load(records, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{records} cannot be read ({error}): pack the images again") from error
    if size != shard["bytes"] or len(rows) != shard["images"] or rows.dtype != RECORD:
        raise UserError(
            f"{images} has {size:,} bytes of {len(rows):,} images, expected {shard['bytes']:,} of "
            f"{shard['images']:,}: copy it again, or pack the images again"
        )
    # Records are few bytes, and labels among them.
    checksums = {records: "records_sha256"} | ({images: "sha256"} if verify else {})
    for path, name in checksums.items():
        if files.sha256(path) != shard[name]:
            raise UserError(
                f"{path} is damaged, its SHA-256 is another: copy it again, or pack the images "
                "again"
            )
    return rows
