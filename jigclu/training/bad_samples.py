"""Unreadable images of a run: reported once, listed in bad_samples.jsonl, and limited in number.

Each line of the file is a JSON object with the path of an image, the reason why it is unreadable,
and the count of attempts to read it, by all ranks and all starts of the run.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from absl import logging

from jigclu.data.sources import Source
from jigclu.system import collectives, files
from jigclu.system.errors import UserError

NAME = "bad_samples.jsonl"


@dataclass(frozen=True)
class _Bad:
    reason: str
    count: int


class _Record:
    """The unreadable images in the file of a workdir; None keeps them in memory only."""

    def __init__(self, workdir: Path | None) -> None:
        self._path = None if workdir is None else workdir / NAME
        self._found: dict[str, _Bad] = {}
        if self._path is not None and self._path.exists():
            try:
                for line in self._path.read_text(encoding="utf-8").splitlines():
                    path, reason, count = json.loads(line).values()
                    self._found[path] = _Bad(reason, int(count))
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{self._path} cannot be read ({error}): remove it") from error

    def add(self, found: Mapping[str, _Bad]) -> None:
        """Warns of images that are new, counts all, and writes the file if there are any."""
        for path, bad in found.items():
            if path not in self._found:
                logging.warning("skipped an unreadable image: %s (%s)", path, bad.reason)
            before = self._found.get(path, _Bad("", 0)).count
            self._found[path] = _Bad(bad.reason, before + bad.count)
        if found and self._path is not None:
            lines = [json.dumps({"path": path, **asdict(bad)}) for path, bad in self._found.items()]
            try:
                files.write_file(self._path, ("\n".join(lines) + "\n").encode())
            except UserError as error:  # The run can do without the file.
                logging.warning("%s", error)


_CURRENT = ContextVar[_Record | None]("_CURRENT", default=None)


@contextmanager
def recording(workdir: Path) -> Iterator[None]:
    """Lists the unreadable images that are found in a block in the file of a workdir."""
    token = _CURRENT.set(_Record(workdir))
    try:
        yield
    finally:
        _CURRENT.reset(token)


class Unreadable:
    """The unreadable images of a source, found by all ranks."""

    def __init__(self, source: Source, most: float) -> None:
        """Has found none yet.

        Args:
          source: images.
          most: share of the images, in [0, 1], above which `exchange` raises.
        """
        self._source = source
        self._most = most
        self._reasons: dict[int, str] = {}
        self._new: Counter[int] = Counter()
        self._all: set[int] = set()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, found: Mapping[int, str]) -> None:
        """Adds images that this rank could not read: why, by index."""
        self._reasons |= found
        self._new.update(found.keys())

    def exchange(self) -> None:
        """Reports what the ranks have added since the last call; all of them must call it.

        Raises:
          UserError: more than the permitted share is unreadable.
        """
        added = {index: (self._reasons[index], count) for index, count in self._new.items()}
        self._new.clear()
        found: dict[str, _Bad] = {}
        for part in collectives.gather_objects(added):
            self._all |= part.keys()
            for index, (reason, count) in sorted(part.items()):
                name = self._source.name(index)
                before = found.get(name, _Bad("", 0)).count
                found[name] = _Bad(reason, before + count)
        if collectives.rank() == 0:
            (_CURRENT.get() or _Record(None)).add(found)
        if len(self) > self._most * len(self._source):
            raise UserError(
                f"most_unreadable is {self._most}, a share of the {len(self._source):,} images, "
                f"but {len(self):,} of them are already known to be unreadable: fix or remove "
                f"those that the warnings and {NAME} in the workdir name, or raise the share"
            )
