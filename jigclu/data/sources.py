"""Sources of images: the protocol, and images in memory.

Sources are pickled to every worker process and are therefore compact: file names are stored in
one array, decoded images in one tensor, which torch shares between processes.
"""

import dataclasses
import hashlib
from typing import Protocol

from torch import Tensor

from jigclu.data.decode import USUAL_DECODING, Decoding, Reduction, at_full_size


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


def find_notes(value: object) -> list[str]:
    """Returns the lines of the plan about a source, or about those in the fields of an object."""
    if hasattr(value, "notes"):
        return list(value.notes)
    if isinstance(value, (list, tuple)):
        parts = list(value)
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return []
    return list(dict.fromkeys(note for part in parts for note in find_notes(part)))


def fingerprint_decoding(decoding: Decoding) -> list[object]:
    """Returns the part of a fingerprint about decoding: empty for the usual one."""
    return [] if decoding == USUAL_DECODING else [decoding]


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
