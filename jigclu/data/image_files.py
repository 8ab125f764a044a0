"""Image files below one folder: finding and reading them."""

import os
from collections.abc import Iterator

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
from jigclu.data.sources import digest, fingerprint_decoding
from jigclu.system import progress
from jigclu.system.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class ImageFiles:
    """A source of files below one folder."""

    def __init__(
        self,
        root: str,
        files: list[str],
        classes: list[str],
        labels: list[int] | None,
        decoding: Decoding = USUAL_DECODING,
    ) -> None:
        """Takes file names relative to root; keeps their order."""
        self.classes = classes
        self.labels = labels
        self._root = root
        self._decoding = decoding
        # An array of bytes takes a third of the memory of strings, which each worker would copy.
        self._files = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        try:
            with open(self.name(index), "rb") as file:
                data = file.read()
        except OSError as error:
            raise UnreadableImageError(str(error)) from error
        return decode_image(data, reduction, self._decoding)

    def name(self, index: int) -> str:
        """Returns the path of the file."""
        return os.path.join(self._root, os.fsdecode(bytes(self._files[index])))

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        parts: list[object] = [self._files.shape, self._files.tobytes(), self.classes, self.labels]
        if deep:
            files = progress.track(range(len(self)), f"checking the files of {self._root}")
            parts += [_stat(self.name(index)) for index in files]
        return digest(*parts, *fingerprint_decoding(self._decoding))


def _stat(path: str) -> tuple[int, int] | None:
    """Returns size and time of modification; None for a missing file, which reading reports."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def require_folder(root: str) -> str:
    """Returns the path with ~ expanded; raises UserError unless it is a folder."""
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: expected the root folder of the images")
    return root


def require_images(root: str, files: list[str]) -> None:
    if not files:
        raise UserError(f"{root} contains no images: expected files named {' '.join(EXTENSIONS)}")


def list_images(root: str) -> list[str]:
    """Returns all images below a folder, sorted; raises UserError if there are none."""
    files = sorted(progress.track(find_images(root, ""), f"listing the images of {root}"))
    require_images(root, files)
    return files


def find_images(root: str, prefix: str) -> Iterator[str]:
    """Yields the images below root/prefix, relative to root, without a stat call per file."""
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name
            elif entry.is_dir() and not _is_circular(entry):
                yield from find_images(root, prefix + entry.name + os.sep)


def _is_circular(entry: "os.DirEntry[str]") -> bool:
    """Returns whether a folder is a link to one of its own parents."""
    if not entry.is_symlink():
        return False
    target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    return os.path.commonpath([target, here]) == target
