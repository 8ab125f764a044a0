"""Subsets of a labeled source: listed in a file, balanced over classes, or held out.

A subset keeps the classes and class numbers of its source, even of classes without images, so
that they agree with those of other splits.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jigclu.data.decode import Reduction, at_full_size
from jigclu.data.lists import read_list, spellings
from jigclu.data.sources import Source, digest, find_notes
from jigclu.system import files, progress, seeds
from jigclu.system.download import download
from jigclu.system.errors import UserError, check, naming

PARTS = ("train", "held_out")


class SubsetSource:
    """The images of a source with the given indices, in that order."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        """Takes a source and int64 indices; raises UserError if the source has no labels."""
        labels = label_array(source)
        self.classes = source.classes
        self.labels: list[int] = labels[indices].tolist()
        self._source = source
        self._indices = indices

    @property
    def notes(self) -> list[str]:
        """Lines of the plan about the source."""
        return find_notes(self._source)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        return self._source.read(int(self._indices[index]), reduction)

    def name(self, index: int) -> str:
        """Returns the name of the image in the source."""
        return self._source.name(int(self._indices[index]))

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        return digest(self._source.fingerprint(deep), self._indices.tobytes())


class ListedSubset(SubsetSource):
    """The images of a labeled source named in a list (path or URL), one per line.

    A line is a file name, as in SimCLR's lists (n04235860_14959.JPEG), or <class>/<file>; see
    `jigclu.data.lists` for its spelling. Parent folders in the source are ignored, labels in the
    list, too.
    """

    def __init__(self, source: Source, path: str, download_to: str) -> None:
        """Finds the images.

        Args:
          source: files with labels.
          path: of the list, or its http URL, which is downloaded once.
          download_to: folder for downloaded lists.

        Raises:
          UserError: the list is missing, empty or cannot be downloaded, a line matches no image
            or several, or a line occurs twice.
          DownloadNeeded: in a dry run, if the list has to be downloaded.
        """
        if path.startswith(("http://", "https://")):
            # From here on, errors name the local copy, which the user may have to replace.
            path = _download(path, files.expand_home(download_to))
        with naming("path"):
            lines = read_list(path)
        depths = {name.count("/") + 1 for line in lines for name in spellings(line)}
        indices = _index_by_name(source, depths)
        lines = [next((n for n in spellings(line) if n in indices), line) for line in lines]
        missing = [line for line in lines if line not in indices]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in the source, "
                f"the first ones are {', '.join(missing[:3])}: expected file names or "
                "<class>/<file> of this data set"
            )
        ambiguous = [line for line in lines if indices[line] < 0]
        if ambiguous:
            raise UserError(
                f"{path} lists {ambiguous[0]}, of which the source has more than one: "
                "list it as <class>/<file>"
            )
        chosen = [indices[line] for line in lines]
        twice = [index for index, count in Counter(chosen).items() if count > 1]
        if twice:
            line = lines[chosen.index(twice[0])]
            raise UserError(f"{path} lists {line} twice: list every image once")
        super().__init__(source, np.array(chosen, np.int64))


def _index_by_name(source: Source, depths: set[int]) -> dict[str, int]:
    """Maps the last path components of every image to its index, or to -1 if ambiguous.

    Args:
      source: of files.
      depths: numbers of components to include.
    """
    indices: dict[str, int] = {}
    for index, name in enumerate(_names(source)):
        parts = name.replace(os.sep, "/").split("/")
        for depth in depths:
            key = "/".join(parts[-depth:])
            indices[key] = -1 if key in indices else index
    return indices


def _names(source: Source) -> Iterator[str]:
    indices = progress.track(range(len(source)), "reading the names of the images")
    return (source.name(index) for index in indices)


def _download(url: str, folder: str) -> str:
    """Downloads a file unless it is in the folder already; returns its path there."""
    path = Path(folder) / url.rpartition("/")[2]
    if not path.exists():
        download(url, path)
    return str(path)


class BalancedSubset(SubsetSource):
    """A random share of every class; depends only on the seed."""

    def __init__(self, source: Source, fraction: float, seed: int) -> None:
        """Draws the images.

        Args:
          source: labeled images.
          fraction: share of each class, in (0, 1], rounded to images, at least one.
          seed: of the draw.

        Raises:
          UserError: fraction is out of range, or the source has no labels.
        """
        check(0 < fraction <= 1, "fraction", fraction, "in (0, 1]")
        chosen, _ = _split_classes(label_array(source), fraction, seeds.balanced_subset(seed))
        super().__init__(source, chosen)


class HeldOut(SubsetSource):
    """A random share of every class, held out from training, or the remaining images."""

    def __init__(self, source: Source, fraction: float, seed: int, part: str) -> None:
        """Splits the source.

        Args:
          source: labeled images.
          fraction: share of each class to hold out, in (0, 1), rounded to images, at least one.
          seed: of the draw.
          part: "held_out" for the share, "train" for the remaining images.

        Raises:
          UserError: a value is out of range, the source has no labels, or no image of a class
            would remain.
        """
        check(0 < fraction < 1, "fraction", fraction, "in (0, 1)")
        check(part in PARTS, "part", part, "'train' or 'held_out'")
        labels = label_array(source)
        held_out, rest = _split_classes(labels, fraction, seeds.held_out(seed))
        without_rest = np.setdiff1d(labels, labels[rest])
        if len(without_rest):
            raise UserError(
                f"class {source.classes[without_rest[0]]} has too few images to hold out "
                f"{fraction:.1%} of them: use a smaller fraction or more images"
            )
        super().__init__(source, held_out if part == "held_out" else rest)


def _split_classes(
    labels: NDArray[np.int64], fraction: float, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of a random share of every class and the others, both ascending."""
    order = torch.randperm(len(labels), generator=generator).numpy()
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    wanted = np.where(counts > 0, np.maximum(1, np.rint(counts * fraction)), 0).astype(np.int64)
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = position < np.repeat(wanted, counts)
    return np.sort(by_class[chosen]), np.sort(by_class[~chosen])


def label_array(source: Source) -> NDArray[np.int64]:
    """Returns the labels as int64 [images]; raises UserError if the source has none."""
    if source.labels is None:
        raise UserError("the source has no labels: use a source with classes")
    return np.asarray(source.labels, np.int64)


def check_labeled(train: Source, val: Source, train_name: str, val_name: str) -> None:
    """Checks that a classifier trained on one source can be evaluated on another.

    Args:
      train: training images.
      val: evaluation images.
      train_name, val_name: bindings of the two, for messages.

    Raises:
      UserError: a source has no labels or images of only one class, their classes differ, or
        an image is in both.
    """
    for name, source in ((train_name, train), (val_name, val)):
        if source.labels is None:
            raise UserError(f"{name} has no labels: use a source with classes")
    check_same_classes(train.classes, val.classes, train_name, val_name)
    for name, source in ((train_name, train), (val_name, val)):
        found = np.unique(label_array(source))
        if len(found) < 2:
            raise UserError(
                f"{name} only has images of class {source.classes[found[0]]}: "
                "use images of at least two classes"
            )
    check_disjoint(train, val, train_name, val_name)


def check_same_classes(train: list[str], val: list[str], train_name: str, val_name: str) -> None:
    """Raises UserError unless training and evaluation have the same classes in the same order.

    The last classes may be missing in evaluation, as in shards with class numbers, which have
    the classes up to the highest number.
    """
    if train[: len(val)] != val:
        differing = sorted(set(train) ^ set(val)) or ["their order"]
        raise UserError(
            f"{train_name} has {len(train)} classes and {val_name} {len(val)}; "
            f"they must be the same, but differ in {', '.join(differing[:5])}"
        )


def check_disjoint(train: Source, val: Source, train_name: str, val_name: str) -> None:
    """Raises UserError if an image is used for training and for evaluation."""
    known = set(_names(train))
    both = (name for name in _names(val) if name in known)
    shared = next(both, None)
    if shared is not None:
        raise UserError(
            f"{shared} is in both {train_name} and {val_name}: evaluate on images that are not "
            "used for training"
        )
