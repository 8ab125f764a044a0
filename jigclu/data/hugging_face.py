"""Data sets of the Hugging Face library `datasets`, which is an optional requirement.

A path is a folder of Parquet or Arrow files, a folder written by `Dataset.save_to_disk`, or the
name of a data set on the hub, which the library downloads once to its own cache.
"""

import os
from collections.abc import Mapping
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
    read_file,
)
from jigclu.data.sources import digest, fingerprint_decoding
from jigclu.system import progress
from jigclu.system.dry_run import check_download
from jigclu.system.errors import UserError
from jigclu.system.files import expand_home

# File formats of a folder: the name of their reader in `datasets`, and their extension.
_FORMATS = (("parquet", ".parquet"), ("arrow", ".arrow"))


class HuggingFaceImages:
    """A source of the images in a column of a data set, mapped into memory, in its order."""

    def __init__(
        self,
        path: str,
        split: str,
        image: str,
        label: str | None,
        decoding: Decoding = USUAL_DECODING,
    ) -> None:
        """Opens the data set; downloads it first if it is one of the hub.

        Args:
          path: folder, or name on the hub such as 'uoft-cs/cifar10'.
          split: name of the split, such as 'train'.
          image: column of the images.
          label: column of the labels, integers or texts; None for no labels.
          decoding: intensities and largest size.

        Raises:
          UserError: `datasets` is not installed, the data set or split cannot be opened, or a
            column is missing or of another type.
          DownloadNeeded: in a dry run, for a data set of the hub.
        """
        self._path = path
        self._split = split
        self._image = image
        self._decoding = decoding
        with progress.status(f"opening {path}"):
            data = _open(path, split)
        for setting, column in (("image", image), ("label", label)):
            if column is not None and column not in data.column_names:
                raise UserError(
                    f"{setting}: {path} has no column {column!r}: choose one of "
                    f"{', '.join(data.column_names)}"
                )
        self.classes, self.labels = _read_labels(data, path, label)
        self._data = _undecoded(data, image)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int, reduction: Reduction = at_full_size) -> Tensor:
        """Returns uint8 [3, height, width], RGB; raises UnreadableImageError."""
        return decode_image(self._bytes(index), reduction, self._decoding)

    def name(self, index: int) -> str:
        """Returns the path and split of the data set, and the number of the row."""
        return f"{self._path} {self._split} row {index}"

    def fingerprint(self, deep: bool) -> str:
        """See `Source`."""
        parts: list[object] = [self._split, len(self), self.classes, self.labels]
        if deep:
            rows = progress.track(range(len(self)), f"checking the images of {self._path}")
            parts += [digest(self._bytes(index)) for index in rows]
        return digest(*parts, *fingerprint_decoding(self._decoding))

    def _bytes(self, index: int) -> bytes:
        value = self._data[index][self._image]
        if isinstance(value, bytes):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        if isinstance(value, Mapping) and value.get("path"):
            return read_file(value["path"], self._decoding)
        raise UnreadableImageError(f"row {index} has no image in column {self._image}")


def _open(path: str, split: str) -> Any:
    """Returns a split as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "HuggingFaceImages needs the library datasets: pip install datasets"
        ) from error
    folder = expand_home(path)
    if not os.path.isdir(folder):
        if path.startswith(("/", ".", "~")):
            raise UserError(f"path {path} is not a folder: expected Parquet or Arrow files")
        check_download(path, datasets.config.HF_DATASETS_CACHE)
    try:
        if not os.path.isdir(folder):
            return datasets.load_dataset(path, split=split)
        if os.path.isfile(os.path.join(folder, "state.json")):
            return datasets.load_from_disk(folder)
        if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
            return datasets.load_from_disk(folder)[split]
        return _open_files(datasets, folder, split)
    except UserError:
        raise
    except Exception as error:  # The library raises many kinds of errors.
        reason = str(error).strip().splitlines()[:1] or [""]
        raise UserError(
            f"path {path}, split {split} cannot be opened ({type(error).__name__}: {reason[0]}): "
            "expected a folder of Parquet or Arrow files, or a data set of the Hugging Face hub"
        ) from error


def _open_files(datasets: Any, folder: str, split: str) -> Any:
    """Opens the files below folder/<split>, or those below folder whose names start with it."""
    for reader, extension in _FORMATS:
        files = sorted(Path(folder).rglob(f"*{extension}"))
        of_split = [
            str(file)
            for file in files
            if file.name.startswith(split) or split in file.relative_to(folder).parts[:-1]
        ]
        if of_split:
            return datasets.load_dataset(reader, data_files={split: of_split}, split=split)
        if files:
            raise UserError(
                f"split: {folder} has no {extension} files of the split {split!r}, in a folder of "
                f"that name or with names that start with it; the first file is {files[0].name}"
            )
    raise UserError(f"path {folder} contains no .parquet or .arrow files")


def _undecoded(data: Any, column: str) -> Any:
    """Returns only a column, with images as the bytes of their files."""
    import datasets

    feature = data.features[column]
    if isinstance(feature, datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    return data.select_columns([column])


def _read_labels(data: Any, path: str, column: str | None) -> tuple[list[str], list[int] | None]:
    """Returns the names of classes and the class number of each row."""
    if column is None:
        return [], None
    values = data.with_format("numpy", columns=[column])[column][:]
    values = np.asarray(values)
    if values.dtype.kind in "US" or values.dtype == object:
        classes = sorted({str(value) for value in values})
        numbers = {name: number for number, name in enumerate(classes)}
        return classes, [numbers[str(value)] for value in values]
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise UserError(
            f"label: column {column} of {path} has values of type {values.dtype}, expected "
            "integers or texts"
        )
    if len(values) and values.max() < 0:
        return [], None
    names = getattr(data.features[column], "names", None)
    if not names:
        names = [str(number) for number in range(int(values.max(initial=-1)) + 1)]
    return list(names), [int(value) for value in values]
