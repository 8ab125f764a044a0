"""Images in tar shards with WebDataset's layout, read in any order.

A sample consists of files with a common name: 000012.jpg, and 000012.cls with a class number or
name, or 000012.json with one as its "label". Names may contain dots. An image whose name
continues that of another, such as 000012.mask.png, is another file of that sample and is not
read. The positions of images are indexed once per shard and saved in a folder.
"""

import contextlib
import fnmatch
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jigclu.data.decode import (
    USUAL_DECODING,
    Decoding,
    Reduction,
    UnreadableImageError,
    at_full_size,
    decode_image,
)
from jigclu.data.image_files import image_extensions
from jigclu.data.sources import digest, fingerprint_decoding
from jigclu.system import files, progress
from jigclu.system.dry_run import is_dry_run
from jigclu.system.errors import UserError
from jigclu.system.input_files import load_array

# Position of an image in its shard, bytes; class number, -1 if unlabeled.
RECORD = np.dtype([("offset", np.int64), ("length", np.int64), ("label", np.int64)])
# Keys of a label in a .json file, in the order in which they are looked up.
_LABEL_KEYS = ("label", "class", "cls")
_MOST_CLASSES = 1_000_000
_MOST_LABEL_BYTES = 2**20
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class WebDatasetImages:
    """A source of the images in the tar shards of a folder, in the order of shard names."""

    def __init__(
        self, root: str, pattern: str, index_folder: str, decoding: Decoding = USUAL_DECODING
    ) -> None:
        """Indexes the shards; each is read completely the first time.

        Args:
          root: folder of the uncompressed shards.
          pattern: of the names of the shards; splits often share a folder, as in
            'imagenet1k-train-*.tar' and 'imagenet1k-validation-*.tar'.
          index_folder: where the indexes are saved.
          decoding: intensities and largest size.

        Raises:
          UserError: there are no shards, a shard is corrupt or compressed or contains other files
            but no images, a label is invalid, or only some images have labels.
        """
        folder = Path(files.expand_home(root))
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        found = [folder / name for name in fnmatch.filter(names, pattern) if name[0] != "."]
        self._shards = [path for path in found if path.is_file()]
        if not self._shards:
            others = fnmatch.filter(names, f"{pattern}.*")
            hint = f"; {others[0]} is compressed: decompress it" if others else ""
            raise UserError(
                f"root {root} contains no {pattern}: expected tar shards in WebDataset's layout"
                f"{hint}"
            )
        saved = Path(files.expand_home(index_folder))
        shards = progress.track(self._shards, f"indexing the shards of {root}")
        rows = [_load_rows(shard, saved) for shard in shards]
        self._first = np.cumsum([0, *map(len, rows)])
        if not self._first[-1]:
            raise UserError(f"root {root}: the shards {pattern} are empty: expected images")
        self._decoding = decoding
        labels = [str(label) for part in rows for label in part["label"]]
        unlabeled = labels.count("")
        if 0 < unlabeled < len(labels):
            raise UserError(
                f"{root}: {unlabeled:,} of {len(labels):,} images have no .cls file or label in a "
                ".json file: expected one for every image or none at all"
            )
        self.classes, numbers = _number_classes([] if unlabeled else labels)
        self.labels: list[int] | None = numbers or None
        positions = [(row["offset"], row["length"]) for part in rows for row in part]
        self._records = np.array(
            [
                (*position, label)
                for position, label in zip(positions, numbers or [-1] * len(labels), strict=True)
            ],
            RECORD,
        )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        record = self._records[index]
        self._decoding.check_bytes(int(record["length"]))
        try:
            # Opened for each image, as forked processes would share the position of one file.
            with open(self._shards[self._shard(index)], "rb") as file:
                file.seek(int(record["offset"]))
                data = file.read(int(record["length"]))
        except OSError as error:
            raise UnreadableImageError(str(error)) from error
        return decode_image(data, reduction, self._decoding)

    def name(self, index: int) -> str:
        """Returns the path of the shard and the position in it."""
        shard = self._shard(index)
        return f"{self._shards[shard]} image {index - self._first[shard]}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        parts: list[object] = [[shard.name for shard in self._shards], self._records.tobytes()]
        if deep:
            parts += [shard.stat().st_mtime_ns for shard in self._shards]
        return digest(*parts, *fingerprint_decoding(self._decoding))

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _number_classes(labels: list[str]) -> tuple[list[str], list[int]]:
    """Returns the names of classes and the class number of each label.

    Shards with class numbers do not contain the names of the classes.
    """
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        return [str(number) for number in range(max(numbers, default=-1) + 1)], numbers
    classes = sorted(set(labels))
    order = {name: number for number, name in enumerate(classes)}
    return classes, [order[label] for label in labels]


def _load_rows(shard: Path, index_folder: Path) -> Any:
    """Returns offset, length and label of each image, from the saved index if there is one."""
    stat = shard.stat()
    key = digest(str(shard.resolve()), stat.st_size, stat.st_mtime_ns)
    saved = index_folder / f"{key}.npy"
    if saved.exists():
        with contextlib.suppress(OSError, ValueError):
            rows = load_array(saved)
            if _is_index(rows, stat.st_size):
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


def _is_index(rows: Any, size: int) -> bool:
    """Returns whether an array is the index of a shard with a number of bytes."""
    # Labels of earlier versions are numbers.
    if rows.dtype.names != RECORD.names or rows["label"].dtype.kind != "U":
        return False
    offset, length = rows["offset"], rows["length"]
    return bool(((offset >= 0) & (length >= 0) & (offset <= size - length)).all())


def _index_shard(shard: Path) -> Any:
    contents = _ShardContents(shard)
    with open(shard, "rb") as file:
        start = file.read(6)
    for magic, name in _COMPRESSIONS.items():
        if start.startswith(magic):
            raise UserError(
                f"{shard} is compressed with {name}: decompress it, since images are read in any "
                "order"
            )
    if not start:
        raise UserError(f"{shard} has 0 bytes, which is no tar file: copy it again, or remove it")
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                contents.add(tar, member)
        # tarfile does not notice a file that was truncated between two members.
        if os.path.getsize(shard) < tar.offset:
            raise tarfile.ReadError("unexpected end of data")
    except (tarfile.TarError, OSError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{shard} is corrupt or not an uncompressed tar file ({error}): copy it again"
        ) from error
    return contents.rows()


class _ShardContents:
    """Positions and labels of the images of a shard, by the path of the image without extension."""

    def __init__(self, shard: Path) -> None:
        self._shard = shard
        self._images: dict[str, tuple[int, int, str]] = {}
        self._labels: dict[str, str] = {}
        self._json: dict[str, tuple[str, bytes]] = {}
        self._others = 0

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Adds a file of the shard; ignores hidden files, such as the ._ files of macOS."""
        stem, extension = os.path.splitext(member.name)
        extension = extension.lower()
        if member.isdir() or os.path.basename(member.name).startswith("."):
            return
        if member.issparse():
            # Its holes can have any size.
            raise self._error(member.name, "is a sparse file: write the shard without --sparse")
        if extension in image_extensions():
            if not member.isfile():
                raise self._error(
                    member.name, "is a link: expected a file (tar --hard-dereference)"
                )
            if stem in self._images:
                reason = f"is a second image of one sample, beside {self._images[stem][2]}"
                raise self._error(member.name, f"{reason}: expected one")
            self._images[stem] = (member.offset_data, member.size, member.name)
            return
        self._others += 1
        file = tar.extractfile(member) if extension in (".cls", ".json") else None
        if file is not None and member.size > _MOST_LABEL_BYTES:
            reason = f"has {member.size:,} bytes; expected at most {_MOST_LABEL_BYTES:,}"
            raise self._error(member.name, reason)
        if file is not None and extension == ".cls":
            text = file.read().decode(errors="surrogateescape")
            self._labels[stem] = self._label(text, member.name)
        elif file is not None:
            self._json[stem] = (member.name, file.read())

    def rows(self) -> Any:
        """Returns offset, length and label of each image; raises UserError without any image."""
        if not self._images and self._others:
            raise UserError(
                f"{self._shard} contains no images but {self._others:,} other files: expected "
                "files named .jpg, .png or of another format that Pillow reads"
            )
        rows = [
            (offset, length, self._find_label(stem))
            for stem, (offset, length, _) in self._images.items()
            if not any(parent in self._images for parent in _parents(stem))
        ]
        longest = max((len(label) for *_, label in rows), default=1)
        return np.array(
            rows, [("offset", np.int64), ("length", np.int64), ("label", f"U{max(1, longest)}")]
        )

    def _find_label(self, stem: str) -> str:
        """Returns the label of an image, empty if it has none."""
        for name in (stem, *_parents(stem)):
            if name in self._labels:
                return self._labels[name]
            if name in self._json:
                return self._json_label(*self._json[name])
        return ""

    def _json_label(self, member: str, data: bytes) -> str:
        try:
            contents = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._error(member, f"is not JSON ({error}): fix or remove it") from error
        if not isinstance(contents, dict):
            raise self._error(member, "is not a JSON object: fix or remove it")
        label = next((contents[key] for key in _LABEL_KEYS if key in contents), None)
        if label is None:
            return ""
        if not isinstance(label, (int, str)):
            raise self._error(member, f"has the label {label!r}: expected a class number or name")
        return self._label(str(label), member)

    def _label(self, text: str, member: str) -> str:
        """Returns a label as it is indexed: a number in its shortest form, -1 as no label."""
        label = text.strip()
        if not label or "\n" in label:
            raise self._error(member, f"contains {label!r}: expected one class number or name")
        if not label.removeprefix("-").isdecimal():
            return label
        if not -1 <= int(label) < _MOST_CLASSES:
            expected = f"class numbers from 0 to {_MOST_CLASSES - 1:,}"
            raise self._error(member, f"contains the class number {label}: expected {expected}")
        return "" if int(label) == -1 else str(int(label))

    def _error(self, member: str, reason: str) -> UserError:
        return UserError(f"{self._shard}: {member} {reason}")


def _parents(stem: str) -> list[str]:
    """Returns the names that a name with dots continues, the longest first: a.b and a of a.b.c."""
    folder, _, name = stem.rpartition("/")
    parts = name.split(".")
    return [
        f"{folder}/{'.'.join(parts[:count])}" if folder else ".".join(parts[:count])
        for count in range(len(parts) - 1, 0, -1)
    ]
