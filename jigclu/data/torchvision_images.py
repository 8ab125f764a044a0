"""Torchvision's data sets."""

import difflib
import os

import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from jigclu.data.decode import Reduction, at_full_size
from jigclu.data.folders import ImageFolder
from jigclu.data.sources import ImageArray, Source
from jigclu.system import progress
from jigclu.system.dry_run import check_download
from jigclu.system.errors import UserError
from jigclu.system.files import expand_home

_TORCHVISION_SPLITS = {
    "CIFAR10": ("train", "val"),
    "CIFAR100": ("train", "val"),
    "STL10": ("train", "val", "unlabeled"),
    "Imagenette": ("train", "val"),
}


class TorchvisionImages:
    """A source of one of torchvision's data sets, downloaded on request.

    Supports CIFAR10, CIFAR100 and STL10 (in memory) and Imagenette (files at full size), each
    with the splits train and val, and STL10 also with unlabeled. For the first three, val is the
    official test set.
    """

    def __init__(self, name: str, root: str, split: str, download: bool) -> None:
        """Opens the data set below root; downloads it first if `download` and necessary.

        Args:
          name: CIFAR10, CIFAR100, STL10 or Imagenette.
          root: folder of the data set.
          split: 'train' or 'val'; of STL10 also 'unlabeled'.
          download: whether to download a data set that is missing.

        Raises:
          UserError: the name or split is unknown, the data are missing, or the download failed.
          DownloadNeeded: in a dry run, if a download is necessary.
        """
        if name not in _TORCHVISION_SPLITS:
            known = tuple(_TORCHVISION_SPLITS)
            raise UserError(f"name: {_unknown_message('torchvision data set', name, known)}")
        if split not in _TORCHVISION_SPLITS[name]:
            known = _TORCHVISION_SPLITS[name]
            raise UserError(f"split: {_unknown_message(f'split of {name}', split, known)}")
        root = expand_home(root)
        try:
            with progress.status(f"reading {name}"):
                self._source = _open_torchvision(name, root, split, download=False)
        except (RuntimeError, OSError) as error:
            if not download:
                advice = "set download to True to fetch it"
                raise UserError(f"{name} is not in {root} ({error}): {advice}") from error
            self._source = _download(name, root, split)
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


def _download(name: str, root: str, split: str) -> Source:
    """Downloads a data set and opens it; only one rank at a time downloads to a folder."""
    check_download(name, root)
    try:
        os.makedirs(root, exist_ok=True)
        lock = FileLock(os.path.join(root, ".download.lock")).acquire()
    except OSError as error:
        raise UserError(
            f"root {root} does not contain {name} and cannot be written ({error.strerror}): "
            "choose a folder that contains it or can be written"
        ) from error
    try:
        # torchvision shows the progress.
        with lock:
            return _open_torchvision(name, root, split, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{name} is not in {root} ({error}): check the network") from error


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


def _unknown_message(kind: str, given: str, valid: tuple[str, ...]) -> str:
    lowered = {name.lower(): name for name in valid}
    nearest = difflib.get_close_matches(given.lower(), lowered, n=1)
    hint = f"; did you mean {lowered[nearest[0]]}?" if nearest else ""
    return f"{given!r} is not a {kind}: expected one of {', '.join(valid)}{hint}"
