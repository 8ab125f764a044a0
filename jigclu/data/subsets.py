"""Parts of a labeled source: listed, drawn evenly over classes, or held out.

A part keeps the classes and class numbers of the whole, so that they agree
with those of other splits, whichever classes it holds images of.
"""

import http.client
import os
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jigclu.data.decode import Reduction, at_full_size
from jigclu.data.sources import Source, digest, read_list
from jigclu.system import files, progress, seeds
from jigclu.system.errors import UserError

PARTS = ("train", "held_out")


class SubsetSource:
    """Some images of a source, in a given order."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        """Keeps the source and which of its images are meant.

        Raises:
          UserError: the source has no labels.
        """
        labels = label_array(source)
        self.classes = source.classes
        self.labels: list[int] = labels[indices].tolist()
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        return self._source.read(int(self._indices[index]), reduction)

    def name(self, index: int) -> str:
        """Returns what the whole source calls the image."""
        return self._source.name(int(self._indices[index]))

    def fingerprint(self, deep: bool) -> str:
        """As `Source`."""
        return digest(self._source.fingerprint(deep), self._indices.tobytes())


class ListedSubset(SubsetSource):
    """The images of a source that a list names, one a line.

    A line is a file's name, such as those of SimCLR's lists
    (n04235860_14959.JPEG), or <class>/<file>; directories of the source above do
    not matter.
    """

    def __init__(self, source: Source, path: str, download_to: str) -> None:
        """Finds the images.

        Args:
          source: with labels, of files.
          path: of the list; or its http address, which is downloaded once.
          download_to: folder of downloaded lists.

        Raises:
          UserError: the list is missing, empty or cannot be downloaded, names an image
            that the source has not or has twice, or one image twice.
        """
        if _is_address(path):
            # From here on the copy is named: whoever has a wrong one must know where it lies.
            path = _downloaded(path, download_to)
        lines = read_list(path)
        twice = [line for line, count in Counter(lines).items() if count > 1]
        if twice:
            raise UserError(f"{path} names {twice[0]} twice: every image may be there once")
        places = _places(source, {line.count("/") + 1 for line in lines})
        missing = [line for line in lines if line not in places]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in the data, "
                f"the first are {', '.join(missing[:3])}: expected names of files of this "
                "data set, or <class>/<file>"
            )
        unclear = [line for line in lines if places[line] < 0]
        if unclear:
            raise UserError(
                f"{path} names {unclear[0]}, of which the data has more than one: "
                "name it as <class>/<file>"
            )
        super().__init__(source, np.array([places[line] for line in lines], np.int64))


def _places(source: Source, depths: set[int]) -> dict[str, int]:
    """Maps the last parts of every image's path, of each depth, to its index; -1: several."""
    places: dict[str, int] = {}
    for index, name in enumerate(_names(source)):
        parts = name.replace(os.sep, "/").split("/")
        for depth in depths:
            key = "/".join(parts[-depth:])
            places[key] = -1 if key in places else index
    return places


def _names(source: Source) -> Iterator[str]:
    indices = progress.track(range(len(source)), "reading the names of the images")
    return (source.name(index) for index in indices)


def _is_address(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _downloaded(address: str, folder: str) -> str:
    path = os.path.join(folder, address.rsplit("/", 1)[1])
    if not os.path.exists(path):
        try:
            os.makedirs(folder, exist_ok=True)
            with (
                progress.status(f"downloading {address}"),
                urllib.request.urlopen(address, timeout=60) as answer,
            ):
                content = answer.read()
            # Several ranks may do this at once: each writes its own, the last one stays.
            files.write_atomically(Path(path), lambda file: file.write(content))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(
                f"{address} cannot be downloaded to {path} ({error}): download it "
                "where there is a network, and give its path instead"
            ) from error
    return path


class BalancedSubset(SubsetSource):
    """The same share of every class, drawn at random: a function of the seed alone."""

    def __init__(self, source: Source, fraction: float, seed: int) -> None:
        """Draws the images.

        Args:
          source: with labels.
          fraction: share of each class, in (0, 1], rounded, at least one image.
          seed: of the draw.

        Raises:
          UserError: a fraction out of range, or a source without labels.
        """
        if not 0 < fraction <= 1:
            raise UserError(f"fraction is {fraction}; it must lie in (0, 1]")
        drawn, _ = _drawn(label_array(source), fraction, seeds.balanced_subset(seed))
        super().__init__(source, drawn)


class HeldOut(SubsetSource):
    """Training images without a share of every class, or that share: the same for a seed."""

    def __init__(self, source: Source, fraction: float, seed: int, part: str) -> None:
        """Splits the source.

        Args:
          source: with labels.
          fraction: share of each class that is held out, in (0, 1), rounded, at least one.
          seed: of the draw.
          part: "train" or "held_out".

        Raises:
          UserError: a value out of range, a source without labels, or a class of one image.
        """
        if not 0 < fraction < 1:
            raise UserError(f"held_out is {fraction}; it must lie in (0, 1)")
        if part not in PARTS:
            raise UserError(f"part is {part!r}; it must be one of {', '.join(PARTS)}")
        labels = label_array(source)
        drawn, rest = _drawn(labels, fraction, seeds.held_out(seed))
        alone = np.setdiff1d(labels, labels[rest])
        if len(alone):
            raise UserError(
                f"class {source.classes[alone[0]]} has too few images to hold out "
                f"{fraction:.1%} of them and train on others"
            )
        super().__init__(source, drawn if part == "held_out" else rest)


def _drawn(
    labels: NDArray[np.int64], fraction: float, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of a share of every class, and those of the rest, both ascending."""
    order = torch.randperm(len(labels), generator=generator).numpy()
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    wanted = np.where(counts > 0, np.maximum(1, np.rint(counts * fraction)), 0).astype(np.int64)
    position = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = position < np.repeat(wanted, counts)
    return np.sort(by_class[chosen]), np.sort(by_class[~chosen])


def label_array(source: Source) -> NDArray[np.int64]:
    """Returns int64 [images]; raises UserError for a source without labels."""
    if source.labels is None:
        raise UserError("the data has no labels: expected a source with classes")
    return np.asarray(source.labels, np.int64)


def check_labeled(train: Source, val: Source, train_name: str, val_name: str) -> None:
    """Makes sure that what is learned of one source can be scored on another.

    Args:
      train: whose classes are known.
      val: to score on.
      train_name, val_name: what the user calls them.

    Raises:
      UserError: one has no labels, their classes differ, there is only one, or an image is
        in both.
    """
    for name, source in ((train_name, train), (val_name, val)):
        if source.labels is None:
            raise UserError(f"{name} has no labels: expected a data set with classes")
    if train.classes != val.classes:
        differing = sorted(set(train.classes) ^ set(val.classes)) or ["their order"]
        raise UserError(
            f"{train_name} has {len(train.classes)} classes and {val_name} {len(val.classes)}; "
            f"they must be the same, different are: {', '.join(differing[:5])}"
        )
    for name, source in ((train_name, train), (val_name, val)):
        found = np.unique(label_array(source))
        if len(found) < 2:
            raise UserError(
                f"{name} has images of one class, {source.classes[found[0]]}: "
                "a score of it would say nothing; give images of two classes or more"
            )
    known = set(_names(train))
    both = (name for name in _names(val) if name in known)
    shared = next(both, None)
    if shared is not None:
        raise UserError(
            f"{shared} is in {train_name} and in {val_name}: a score must be of images that "
            "were not seen; is there a folder for each split?"
        )
