"""Packs: images in a few large files, which read faster than a tree of small ones.

A pack is a folder of shards. Shard n consists of shard_n.bin, the concatenated images, and
shard_n.npy, one `RECORD` per image, which is written after it. pack.json is written last and
marks the pack as complete. Images are JPEG files, or raw bytes that need no decoding and of
which a crop only reads its own part.
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
from jigclu.system.errors import UserError, naming
from jigclu.system.input_files import load_array

FORMATS = ("jpeg", "raw")
# Position of an image in its shard, bytes; sides, pixels; class number, -1 if unlabeled; index
# of the image in the packed source.
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
# Keys of each shard in pack.json.
SHARD_FIELDS = ("images", "bytes", "sha256", "records_sha256")


def shard_files(root: Path, number: int) -> tuple[Path, Path]:
    """Returns the paths of the images and of the records of a shard."""
    return root / f"shard_{number:05d}.bin", root / f"shard_{number:05d}.npy"


class PackedImages:
    """A source of the images of a pack, mapped into memory, in the order of the packed source."""

    def __init__(self, root: str, verify: bool) -> None:
        """Opens a pack and checks the sizes of its files.

        Args:
          root: folder of the pack.
          verify: whether to read every shard once and compare its checksum.

        Raises:
          UserError: the pack is missing, incomplete or corrupt.
        """
        self._root = Path(files.expand_home(root))
        with naming("root"):
            index = _read_index(self._root)
        self.classes: list[str] = index["classes"]
        self._is_raw = index["format"] == "raw"
        self._fingerprint: str = index["fingerprint"]
        numbers = progress.track(range(len(index["shards"])), f"opening the shards of {root}")
        records = [_open_shard(self._root, number, index, verify) for number in numbers]
        self._records = np.concatenate(records)
        self._first = np.cumsum([0, *map(len, records)])
        self.labels: list[int] | None = self._records["label"].tolist() if self.classes else None
        self._maps: dict[int, np.memmap[Any, np.dtype[np.uint8]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Each process maps the files itself; a pickled map would copy the data.
        return self.__dict__ | {"_maps": {}}

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError.

        An image of a raw pack is a view of the map, so that a crop only reads its own pages.
        """
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        record = self._records[index]
        data = self._map(shard)[record["offset"] : record["offset"] + record["length"]]
        if not self._is_raw:
            sides = int(record["height"]), int(record["width"])
            return decode_upright_jpeg(torch.from_numpy(data), *sides, reduction)
        return torch.from_numpy(data).view(3, int(record["height"]), int(record["width"]))

    def name(self, index: int) -> str:
        """Returns the path of the shard and the position in it."""
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        return f"{shard_files(self._root, shard)[0]} image {index - self._first[shard]}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`. The checksums of the shards identify the content of the images."""
        del deep
        return self._fingerprint

    def _map(self, shard: int) -> "np.memmap[Any, np.dtype[np.uint8]]":
        if shard not in self._maps:
            path = shard_files(self._root, shard)[0]
            try:
                # Copy-on-write, as torch warns of read-only memory.
                self._maps[shard] = np.memmap(path, np.uint8, mode="c")
            except OSError as error:
                raise UnreadableImageError(f"{path}: {error.strerror}") from error
        return self._maps[shard]


def build_index(
    image_format: str, classes: list[str], shards: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the content of pack.json.

    Args:
      image_format: one of `FORMATS`.
      classes: names of the classes.
      shards: `SHARD_FIELDS` of each shard: number of images, number of bytes, and the SHA-256 of
        its images and of its records.
    """
    checksums = [(shard["sha256"], shard["records_sha256"]) for shard in shards]
    return {
        "format": image_format,
        "classes": classes,
        "fingerprint": digest("pack", image_format, classes, checksums),
        "shards": shards,
    }


def _read_index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    if not path.is_file():
        raise UserError(
            f"{root} contains no {INDEX}: it is not a pack, or packing has not finished; "
            "create or complete it with gin/pack.gin"
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["format"] not in FORMATS or not contents["shards"]:
            raise ValueError(f"format {contents['format']!r}, {len(contents['shards'])} shards")
        missing = {
            name for shard in contents["shards"] for name in SHARD_FIELDS if name not in shard
        }
        if missing:
            raise ValueError(f"shards without {', '.join(sorted(missing))}")
        return dict(contents)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is corrupt ({error}): pack the images again") from error


def _open_shard(root: Path, number: int, index: dict[str, Any], verify: bool) -> Any:
    """Returns the records of a shard after comparing it with its entry in the index."""
    images, records = shard_files(root, number)
    shard, image_format, classes = index["shards"][number], index["format"], len(index["classes"])
    try:
        size = os.path.getsize(images)
        rows = load_array(records)
    except (OSError, ValueError) as error:
        raise UserError(f"{records} cannot be read ({error}): pack the images again") from error
    if size != shard["bytes"] or len(rows) != shard["images"] or rows.dtype != RECORD:
        raise UserError(
            f"{images} has {size:,} bytes and {len(rows):,} images, expected {shard['bytes']:,} "
            f"bytes and {shard['images']:,} images: copy it again, or pack the images again"
        )
    # Records are small and contain the labels, so they are always verified.
    checksums = {records: "records_sha256"} | ({images: "sha256"} if verify else {})
    for path, name in checksums.items():
        if files.sha256(path) != shard[name]:
            raise UserError(
                f"{path} is corrupt, its SHA-256 differs from {INDEX}: copy it again, or pack the "
                "images again"
            )
    _check_records(records, rows, size, image_format, classes)
    return rows


def _check_records(path: Path, rows: Any, size: int, image_format: str, classes: int) -> None:
    """Raises UserError for records that point outside of their shard or of the classes.

    Args:
      path: of the records, for messages.
      rows: `RECORD` [images].
      size: bytes of the shard.
      image_format: one of `FORMATS`.
      classes: number of classes.
    """
    offset, length, label = rows["offset"], rows["length"], rows["label"]
    pixels = rows["height"].astype(np.int64) * rows["width"]
    is_valid = (offset >= 0) & (length > 0) & (length <= size) & (offset <= size - length)
    is_valid &= (rows["height"] > 0) & (rows["width"] > 0)
    is_valid &= (label >= -1) & (label < max(classes, 1))
    if image_format == "raw":
        is_valid &= length == 3 * pixels
    if not is_valid.all():
        raise UserError(
            f"{path} is corrupt: image {int(np.argmin(is_valid))} lies outside of the shard, or "
            "has an invalid size or label; pack the images again"
        )
