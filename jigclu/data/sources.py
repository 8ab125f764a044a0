"""Where images come from: folders, lists of files, torchvision's data sets.

A source is small to pickle, as every worker process gets one: file names are
kept in one array, decoded images in one tensor, which torch shares.
"""

import difflib
import hashlib
import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from jigclu.data.decode import Reduction, UnreadableImageError, at_full_size, decode_image
from jigclu.system import progress
from jigclu.system.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_SPLITS = ("train", "val", "test")
_TORCHVISION_SPLITS = {
    "CIFAR10": ("train", "val"),
    "CIFAR100": ("train", "val"),
    "STL10": ("train", "val", "unlabeled"),
    "Imagenette": ("train", "val"),
}


class Source(Protocol):
    """A fixed sequence of images."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty when unlabeled."""

    @property
    def labels(self) -> list[int] | None:
        """Class number of every image; None when unlabeled."""

    def __len__(self) -> int: ...

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError.

        Args:
          index: from 0.
          reduction: by which a source that decodes may shrink the image; any may not.
        """

    def name(self, index: int) -> str:
        """Returns what tells the user which image this is."""

    def fingerprint(self, deep: bool) -> str:
        """Returns hexadecimal digits that tell these images from others.

        Args:
          deep: also by what the images hold, of files by size and time of change;
            else by number, order and names alone, which a copy elsewhere shares.
        """


def digest(*parts: object) -> str:
    """Hashes bytes, and anything else by its representation, to hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


class ImageFiles:
    """A source of files below one folder."""

    def __init__(
        self, root: str, files: list[str], classes: list[str], labels: list[int] | None
    ) -> None:
        """Keeps the names of the files, relative to root, in the order given."""
        self.classes = classes
        self.labels = labels
        self._root = root
        # A million strings would be copied to every worker; an array of bytes is a third.
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
        return decode_image(data, reduction)

    def name(self, index: int) -> str:
        """Returns the path of the file."""
        return os.path.join(self._root, os.fsdecode(bytes(self._files[index])))

    def fingerprint(self, deep: bool) -> str:
        """As `Source`."""
        parts: list[object] = [self._files.shape, self._files.tobytes(), self.classes, self.labels]
        if deep:
            files = progress.track(range(len(self)), f"looking at the files of {self._root}")
            parts += [_stat(self.name(index)) for index in files]
        return digest(*parts)


def _stat(path: str) -> tuple[int, int] | None:
    """Returns size and time of change; None for a file that is gone, which reading will tell."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


class ImageFolder(ImageFiles):
    """A tree of one folder per class, with or without a level of splits above.

    Reads root/<split>/<class>/**, or root/<class>/** where root has no folder
    of that split. Classes and files are sorted; hidden ones are left out.
    """

    def __init__(self, root: str, split: str) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing, or holds no class folders or no images, or
            holds other splits than the one asked for.
        """
        folder = _split_folder(_existing(root), split)
        classes = _subfolders(folder)
        if not classes:
            raise UserError(
                f"{folder} has no class folders: expected {folder}/<class>/<image>; "
                "images without classes can be read as unlabeled"
            )
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(progress.track(classes, f"listing the classes of {folder}")):
            found = sorted(_image_files(folder, name + os.sep))
            files += found
            labels += [label] * len(found)
        _require_images(folder, files)
        super().__init__(folder, files, classes, labels)


class UnlabeledImages(ImageFiles):
    """All images below a folder, flat or nested, sorted; hidden ones are left out."""

    def __init__(self, root: str) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing or holds no images.
        """
        root = _existing(root)
        files = sorted(progress.track(_image_files(root, ""), f"listing the images of {root}"))
        _require_images(root, files)
        super().__init__(root, files, classes=[], labels=None)


class ImageList(ImageFiles):
    """The images that a text file names, one path a line, relative to a folder.

    A bare ImageNet name, as in the lists of SimCLR, may also lie in the folder
    of its class: n04235860_14959.JPEG in n04235860/. Blank lines are passed over.
    """

    def __init__(self, path: str, root: str) -> None:
        """Reads the list and makes sure that every file is there.

        Raises:
          UserError: the list or root is missing, the list is empty, or files are missing.
        """
        root, lines = _existing(root), read_list(path)
        tracked = progress.track(lines, f"looking for the images of {path}")
        found = [_listed_file(root, line) for line in tracked]
        missing = [line for line, file in zip(lines, found, strict=True) if file is None]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in {root}, "
                f"the first is {missing[0]}: paths must be relative to that folder"
            )
        super().__init__(root, [file for file in found if file], classes=[], labels=None)


class ImageArray:
    """A source of images of one size, held in memory."""

    def __init__(
        self, title: str, images: Tensor, classes: list[str], labels: list[int] | None
    ) -> None:
        """Keeps images, uint8 [count, 3, height, width], RGB."""
        self.classes = classes
        self.labels = labels
        self._title = title
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB, at full size."""
        del reduction
        return self._images[index]

    def name(self, index: int) -> str:
        """Returns the title of the data and the index."""
        return f"{self._title} image {index}"

    def fingerprint(self, deep: bool) -> str:
        """As `Source`."""
        content = self._images.numpy().tobytes() if deep else b""
        return digest(self._title, self._images.shape, self.classes, self.labels, content)


class TorchvisionImages:
    """A data set that torchvision knows, downloaded on request.

    CIFAR10, CIFAR100, STL10 (in memory) and Imagenette (files, full size), with
    the splits train and val (the published test sets of the first three), and
    for STL10 unlabeled.
    """

    def __init__(self, name: str, root: str, split: str, download: bool) -> None:
        """Opens the data set below root, first downloading it if asked and needed.

        Raises:
          UserError: an unknown name or split, data that are not there, or a
            download that failed.
        """
        if name not in _TORCHVISION_SPLITS:
            raise UserError(_unknown("torchvision data set", name, tuple(_TORCHVISION_SPLITS)))
        if split not in _TORCHVISION_SPLITS[name]:
            raise UserError(_unknown(f"split of {name}", split, _TORCHVISION_SPLITS[name]))
        try:
            # A download shows its own progress.
            with _alone(root) if download else progress.status(f"reading {name}"):
                self._source = _open_torchvision(name, root, split, download)
        except (RuntimeError, OSError) as error:
            advice = "check the network" if download else "set download to True to fetch it"
            raise UserError(f"{name} is not in {root} ({error}): {advice}") from error
        self.classes = self._source.classes
        self.labels = self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        return self._source.read(index, reduction)

    def name(self, index: int) -> str:
        """Returns the path of the file, or the data set's name and the index."""
        return self._source.name(index)

    def fingerprint(self, deep: bool) -> str:
        """As `Source`."""
        return self._source.fingerprint(deep)


def _alone(root: str) -> FileLock:
    """Returns a lock, for ranks that would all download the same files."""
    os.makedirs(root, exist_ok=True)
    return FileLock(os.path.join(root, ".download.lock"))


def _open_torchvision(name: str, root: str, split: str, download: bool) -> Source:
    title = f"{name} {split}"
    if name == "Imagenette":
        data = datasets.Imagenette(root, split=split, download=download)
        files = ImageFolder(os.path.join(root, "imagenette2"), split)
        files.classes = [names[0] for names in data.classes]
        return files
    if name == "STL10":
        data = datasets.STL10(root, "test" if split == "val" else split, download=download)
        images = torch.from_numpy(data.data)
        if split == "unlabeled":
            return ImageArray(title, images, classes=[], labels=None)
        return ImageArray(title, images, list(data.classes), [int(x) for x in data.labels])
    data = getattr(datasets, name)(root, train=split == "train", download=download)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    return ImageArray(title, images, list(data.classes), list(data.targets))


def read_list(path: str) -> list[str]:
    """Returns the lines of a text file that are not blank.

    Raises:
      UserError: no such file, not text in UTF-8, or nothing in it.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file: expected a list of images, one path a line")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}): save it as such") from error
    if not lines:
        raise UserError(f"{path} names no images: expected one path a line")
    return lines


def _unknown(thing: str, given: str, valid: tuple[str, ...]) -> str:
    lowered = {name.lower(): name for name in valid}
    nearest = difflib.get_close_matches(given.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[nearest[0]]}?" if nearest else ""
    return f"{given!r} is no {thing}: expected one of {', '.join(valid)}{hint}"


def _existing(root: str) -> str:
    """Returns a folder that is there; ~ is the user's own."""
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(
            f"{root} is not a folder: expected the folder of the images; "
            "bind the root of the source to it"
        )
    return root


def _require_images(root: str, files: list[str]) -> None:
    if not files:
        raise UserError(f"{root} holds no images: expected files named {' '.join(EXTENSIONS)}")


def _split_folder(root: str, split: str) -> str:
    """Returns root/split if it holds folders (a class may be called train, too), else root."""
    folder = os.path.join(root, split)
    if os.path.isdir(folder) and _subfolders(folder):
        return folder
    others = [other for other in _SPLITS if other != split and other in _subfolders(root)]
    others = [other for other in others if _subfolders(os.path.join(root, other))]
    if others:
        raise UserError(
            f"{folder} is missing or has no class folders: {root} has only the split "
            f"{', '.join(others)}; choose it or add {split}"
        )
    return root


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _image_files(root: str, prefix: str) -> Iterator[str]:
    """Yields the images below root/prefix, relative to root, without a stat for each."""
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name
            elif entry.is_dir() and not _leads_back(entry):
                yield from _image_files(root, prefix + entry.name + os.sep)


def _leads_back(entry: "os.DirEntry[str]") -> bool:
    """Returns whether a folder is a link to one that it lies in."""
    if not entry.is_symlink():
        return False
    target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    return os.path.commonpath([target, here]) == target


def _listed_file(root: str, line: str) -> str | None:
    candidates = [line, os.path.join(line.split("_")[0], line)]
    return next((c for c in candidates if os.path.isfile(os.path.join(root, c))), None)
