"""Image files below one folder: finding and reading them."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from jigclu.data.decode import (
    USUAL_DECODING,
    Decoding,
    Reduction,
    at_full_size,
    decode_image,
    read_file,
    readable_formats,
)
from jigclu.data.sources import digest, fingerprint_decoding
from jigclu.system import progress
from jigclu.system.errors import UserError
from jigclu.system.files import expand_home
from jigclu.system.input_files import open_regular

# Files with these extensions are not opened to look for an image.
_OTHER_EXTENSIONS = {
    *(".csv", ".db", ".gz", ".html", ".json", ".jsonl", ".lock", ".log", ".md", ".npy", ".npz"),
    *(".parquet", ".pickle", ".pkl", ".pt", ".pth", ".py", ".sh", ".tar", ".tsv", ".txt", ".xml"),
    *(".yaml", ".yml", ".zip"),
}


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of the formats that Pillow reads, in lower case: .jpg, .avif."""
    known, formats = Image.registered_extensions(), readable_formats()
    return frozenset(extension for extension, name in known.items() if name in formats)


def is_image(path: str) -> bool:
    """Returns whether a file is an image by its extension or, without a known one, its header."""
    extension = os.path.splitext(path)[1].lower()
    if extension in image_extensions() or extension in _OTHER_EXTENSIONS:
        return extension in image_extensions()
    try:
        with open_regular(path) as file, Image.open(file, formats=readable_formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # PIL's plugins raise many kinds of errors on other data.
        return False


class ImageFiles:
    """A source of files below one folder."""

    def __init__(
        self,
        root: str,
        files: list[str],
        classes: list[str],
        labels: list[int] | None,
        decoding: Decoding = USUAL_DECODING,
        notes: Sequence[str] = (),
    ) -> None:
        """Takes file names relative to root, and lines for the plan; keeps their order."""
        self.classes = classes
        self.labels = labels
        self._root = root
        self._decoding = decoding
        self.notes = list(notes)
        # An array of bytes takes a third of the memory of strings, which each worker would copy.
        self._files = np.array([os.fsencode(file) for file in files])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        data = read_file(self.name(index), self._decoding)
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
    root = expand_home(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root or repr(root)} is not a folder: expected the root folder of the images"
        )
    return root


class FoundImages(NamedTuple):
    """The images below a folder.

    files: names relative to the folder.
    notes: lines of the plan about files that are left out.
    """

    files: list[str]
    notes: list[str]


def list_images(root: str) -> FoundImages:
    """Returns all images below a folder, sorted; raises UserError if there are none."""
    walk = ImageWalk(root)
    found = itertools.chain(walk.images(""), walk.linked_images())
    files = sorted(progress.track(found, f"listing the images of {root}"))
    return FoundImages(files, walk.finish(len(files)))


class ImageWalk:
    """Finds the images below folders, each file once, and counts the other files.

    Links are followed after everything else, so that a file has its own name even if a link to
    it, or to a folder above it, comes first. Hidden files and folders are ignored.
    """

    def __init__(self, root: str) -> None:
        """Takes the folder to which all names are relative; lists nothing yet."""
        self._root = root
        self._seen: set[tuple[int, int]] = set()
        self._folder_links: list[str] = []
        self._file_links: list[str] = []
        self._left_out: list[str] = []

    def images(self, folder: str) -> Iterator[str]:
        """Yields the images below a folder, except those behind links."""
        path = os.path.join(self._root, folder)
        if folder and os.path.islink(path):
            self._folder_links.append(folder)
        else:
            yield from self._images(folder)

    def linked_images(self) -> Iterator[str]:
        """Yields the images behind the links of the folders listed so far."""
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links), []
            for link in links:
                yield from self._images(link)
        targets: set[str] = set()
        for link in sorted(self._file_links):
            target = os.path.realpath(os.path.join(self._root, link))
            if target not in targets and not self._lists(target):
                yield from self._image(link)
            targets.add(target)

    def finish(self, images: int) -> list[str]:
        """Returns notes about files that are left out; raises UserError without any image."""
        if not images:
            raise UserError(
                f"{self._root} contains no images: expected files named .jpg, .png or of another "
                f"format that Pillow reads{self._describe_left_out(', but found ')}"
            )
        return [f"left out {text}" for text in [self._describe_left_out()] if text]

    def _describe_left_out(self, before: str = "") -> str:
        if not self._left_out:
            return ""
        first = os.path.join(self._root, min(self._left_out))
        return f"{before}{len(self._left_out):,} files that are not images, such as {first}"

    def _images(self, folder: str) -> Iterator[str]:
        path = os.path.join(self._root, folder)
        if self._key(path) in self._seen:
            return
        self._seen.add(self._key(path))
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            raise UserError(f"{path} cannot be listed: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = os.path.join(folder, entry.name)
            if _is_special(entry):
                self._left_out.append(name)
            elif entry.is_symlink() and not entry.is_dir():
                self._file_links.append(name)
            elif entry.is_symlink():
                if not _contains(entry.path, path):
                    self._folder_links.append(name)
            elif entry.is_dir():
                yield from self._images(name)
            else:
                yield from self._image(name)

    def _image(self, name: str) -> Iterator[str]:
        if is_image(os.path.join(self._root, name)):
            yield name
        else:
            self._left_out.append(name)

    def _lists(self, file: str) -> bool:
        """Returns whether a file is in one of the folders listed so far."""
        folder, name = os.path.split(file)
        return os.path.exists(file) and self._key(folder) in self._seen and name[0] != "."

    @staticmethod
    def _key(folder: str) -> tuple[int, int]:
        """Identifies a folder under all of its names, without a stat call per file."""
        stat = os.stat(folder)
        return stat.st_dev, stat.st_ino


def _is_special(entry: "os.DirEntry[str]") -> bool:
    """Returns whether an entry is, or links to, a FIFO, socket or device."""
    if entry.is_file() or entry.is_dir():
        return False
    return not entry.is_symlink() or os.path.exists(entry.path)


def _contains(link: str, folder: str) -> bool:
    """Returns whether the target of a link is a folder, or one of the folders above it."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(folder)]) == target
