"""Sources of images: folders, lists of files, torchvision's data sets.

Sources are pickled to every worker process and are therefore compact: file names are stored in
one array, decoded images in one tensor, which torch shares between processes.
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
from jigclu.system.errors import UserError, naming

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
          reduction: factor by which decoding may shrink the image; a source may ignore it.
        """

    def name(self, index: int) -> str:
        """Returns a name by which the user can identify the image."""

    def fingerprint(self, deep: bool) -> str:
        """Returns hexadecimal digits that identify these images.

        Args:
          deep: whether to include the content of the images (of files, their size and time of
            modification). Otherwise the fingerprint covers only number, order and names, so that
            a copy in another folder has the same one.
        """


def digest(*parts: object) -> str:
    """Hashes bytes, and other objects by their repr, to hexadecimal digits."""
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
        """Takes file names relative to root; keeps their order."""
        self.classes = classes
        self.labels = labels
        self._root = root
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
        return decode_image(data, reduction)

    def name(self, index: int) -> str:
        """Returns the path of the file."""
        return os.path.join(self._root, os.fsdecode(bytes(self._files[index])))

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        parts: list[object] = [self._files.shape, self._files.tobytes(), self.classes, self.labels]
        if deep:
            files = progress.track(range(len(self)), f"checking the files of {self._root}")
            parts += [_stat(self.name(index)) for index in files]
        return digest(*parts)


def _stat(path: str) -> tuple[int, int] | None:
    """Returns size and time of modification; None for a missing file, which reading reports."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


class ImageFolder(ImageFiles):
    """A source with one folder per class, below a folder per split or without splits.

    Reads root/<split>/<class>/**, or root/<class>/** if root has no folder of that split. Classes
    and files are sorted; hidden ones are ignored.
    """

    def __init__(self, root: str, split: str) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing, contains no class folders or no images, or contains only
            other splits.
        """
        with naming("root"):
            folder = _split_folder(require_folder(root), split)
            classes = _class_folders(folder)
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(progress.track(classes, f"listing the classes of {folder}")):
            found = sorted(_image_files(folder, name + os.sep))
            files += found
            labels += [label] * len(found)
        with naming("root"):
            _require_images(folder, files)
        super().__init__(folder, files, classes, labels)


class UnlabeledImages(ImageFiles):
    """A source of all images below a folder, sorted by path; hidden ones are ignored."""

    def __init__(self, root: str) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing or contains no images.
        """
        with naming("root"):
            root = require_folder(root)
            files = list_images(root)
        super().__init__(root, files, classes=[], labels=None)


def open_folder(root: str) -> ImageFiles:
    """Opens all images below a folder, sorted by path; hidden ones are ignored.

    If every image is in a subfolder, the subfolders of root are the classes; otherwise the images
    are unlabeled.

    Raises:
      UserError: root is missing or contains no images.
    """
    with naming("images"):
        root = require_folder(root)
        files = list_images(root)
    if any(os.sep not in file for file in files):
        return ImageFiles(root, files, classes=[], labels=None)
    folders = [file.split(os.sep)[0] for file in files]
    classes = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageFiles(root, files, classes, [numbers[folder] for folder in folders])


class ImageList(ImageFiles):
    """A source of the images named in a text file, one path per line, relative to a folder.

    A bare ImageNet file name, as in the lists of SimCLR, is also found in the folder of its
    class: n04235860_14959.JPEG in n04235860/. Blank lines are ignored.
    """

    def __init__(self, path: str, root: str) -> None:
        """Reads the list and checks that every file exists.

        Raises:
          UserError: the list, root or a listed file is missing, or the list is empty.
        """
        with naming("root"):
            root = require_folder(root)
        with naming("path"):
            lines = read_list(path)
        tracked = progress.track(lines, f"looking for the images of {path}")
        found = [_find_listed(root, line) for line in tracked]
        missing = [line for line, file in zip(lines, found, strict=True) if file is None]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in {root}, "
                f"the first one is {missing[0]}: paths must be relative to that folder"
            )
        super().__init__(root, [file for file in found if file], classes=[], labels=None)


class ImageArray:
    """A source of images of one size in memory."""

    def __init__(
        self, title: str, images: Tensor, classes: list[str], labels: list[int] | None
    ) -> None:
        """Takes images, uint8 [count, 3, height, width], RGB, and a title for their names."""
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
        """Returns the title and the index."""
        return f"{self._title} image {index}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        content = self._images.numpy().tobytes() if deep else b""
        return digest(self._title, self._images.shape, self.classes, self.labels, content)


class TorchvisionImages:
    """A source of one of torchvision's data sets, downloaded on request.

    Supports CIFAR10, CIFAR100 and STL10 (in memory) and Imagenette (files at full size), each
    with the splits train and val, and STL10 also with unlabeled. For the first three, val is the
    official test set.
    """

    def __init__(self, name: str, root: str, split: str, download: bool) -> None:
        """Opens the data set below root; downloads it first if `download` and necessary.

        Raises:
          UserError: the name or split is unknown, the data are missing, or the download failed.
        """
        if name not in _TORCHVISION_SPLITS:
            known = tuple(_TORCHVISION_SPLITS)
            raise UserError(f"name: {_unknown_message('torchvision data set', name, known)}")
        if split not in _TORCHVISION_SPLITS[name]:
            known = _TORCHVISION_SPLITS[name]
            raise UserError(f"split: {_unknown_message(f'split of {name}', split, known)}")
        try:
            # torchvision shows the progress of a download.
            with _lock(root) if download else progress.status(f"reading {name}"):
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
        """See `Source`."""
        return self._source.fingerprint(deep)


def _lock(root: str) -> FileLock:
    """Returns a lock that lets only one rank at a time download to a folder."""
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
    """Returns the non-blank lines of a text file.

    Raises:
      UserError: the file is missing, empty or not UTF-8.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file: expected a list of images, one path per line")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    if not lines:
        raise UserError(f"{path} lists no images: expected one path per line")
    return lines


def _unknown_message(kind: str, given: str, valid: tuple[str, ...]) -> str:
    lowered = {name.lower(): name for name in valid}
    nearest = difflib.get_close_matches(given.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[nearest[0]]}?" if nearest else ""
    return f"{given!r} is not a {kind}: expected one of {', '.join(valid)}{hint}"


def require_folder(root: str) -> str:
    """Returns the path with ~ expanded; raises UserError unless it is a folder."""
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise UserError(f"{root} is not a folder: expected the root folder of the images")
    return root


def _require_images(root: str, files: list[str]) -> None:
    if not files:
        raise UserError(f"{root} contains no images: expected files named {' '.join(EXTENSIONS)}")


def list_images(root: str) -> list[str]:
    """Returns all images below a folder, sorted; raises UserError if there are none."""
    files = sorted(progress.track(_image_files(root, ""), f"listing the images of {root}"))
    _require_images(root, files)
    return files


def _class_folders(folder: str) -> list[str]:
    classes = _subfolders(folder)
    if not classes:
        raise UserError(
            f"{folder} contains no class folders: expected {folder}/<class>/<image>; "
            "read images without classes with UnlabeledImages"
        )
    return classes


def _split_folder(root: str, split: str) -> str:
    """Returns root/split if it contains folders (a class may also be called train), else root."""
    folder = os.path.join(root, split)
    if os.path.isdir(folder) and _subfolders(folder):
        return folder
    others = [other for other in _SPLITS if other != split and other in _subfolders(root)]
    others = [other for other in others if _subfolders(os.path.join(root, other))]
    if others:
        raise UserError(
            f"{folder} is missing or contains no class folders: {root} only has the split "
            f"{', '.join(others)}; choose it or add {split}"
        )
    return root


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _image_files(root: str, prefix: str) -> Iterator[str]:
    """Yields the images below root/prefix, relative to root, without a stat call per file."""
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name
            elif entry.is_dir() and not _is_circular(entry):
                yield from _image_files(root, prefix + entry.name + os.sep)


def _is_circular(entry: "os.DirEntry[str]") -> bool:
    """Returns whether a folder is a link to one of its own parents."""
    if not entry.is_symlink():
        return False
    target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
    return os.path.commonpath([target, here]) == target


def _find_listed(root: str, line: str) -> str | None:
    candidates = [line, os.path.join(line.split("_")[0], line)]
    return next((c for c in candidates if os.path.isfile(os.path.join(root, c))), None)
