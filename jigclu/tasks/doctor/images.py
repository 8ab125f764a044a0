"""Checks of the images that a task reads."""

import dataclasses
from typing import Any

from torch.utils.data import DataLoader, Dataset

from jigclu.data.decode import UnreadableImageError
from jigclu.data.loader import check_loader
from jigclu.data.sources import Source
from jigclu.system import collectives, progress
from jigclu.system.cores import available_cores, local_ranks
from jigclu.tasks.doctor.finding import Finding, Level

_SHOWN = 5  # Unreadable images that the text of a finding names.


def find_sources(task: Any, prefix: str = "") -> dict[str, Source]:
    """Returns the images that a task and its evaluators read, by setting, each source once."""
    found: dict[str, Source] = {}
    for field in dataclasses.fields(task):
        value, path = getattr(task, field.name), f"{prefix}{field.name}"
        for part in value if isinstance(value, tuple) else (value,):
            if hasattr(part, "fingerprint"):
                found.setdefault(path, part)
            elif dataclasses.is_dataclass(part):
                found |= find_sources(part, f"{path}.")
    seen: dict[str, str] = {}
    for path, source in found.items():
        seen.setdefault(source.fingerprint(deep=False), path)
    return {path: found[path] for path in seen.values()}


class _Problems(Dataset[tuple[int, str]]):
    """For each image its number, and why it is unreadable, or an empty text."""

    def __init__(self, source: Source, indices: range) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> tuple[int, str]:
        index = self._indices[number]
        try:
            self._source.read(index)
        except UnreadableImageError as error:
            return index, str(error)
        return index, ""


def check_images(name: str, source: Source, timeout: float, tolerated: float) -> Finding:
    """Decodes every image of a source; the ranks share the work, and all get the finding.

    More unreadable images than the tolerated share, in [0, 1], are an error.
    """
    share = range(collectives.rank(), len(source), collectives.world_size())
    workers = max(1, available_cores() // local_ranks())
    problems: dict[int, str] = {}
    loader: DataLoader[Any] = check_loader(_Problems(source, share), workers, timeout)
    with progress.status(f"decoding the images of {name}", total=len(share)) as work:
        for samples in loader:
            problems |= {index: why for index, why in samples if why}
            work.done += len(samples)
    for part in collectives.gather_objects(problems):
        problems |= part
    if not problems:
        return Finding(name, "ok", f"all {len(source):,} images are readable")
    details = tuple(f"{source.name(index)} ({why})" for index, why in sorted(problems.items()))
    shown = "; ".join(details[:_SHOWN]) + ("; ..." if len(details) > _SHOWN else "")
    text = f"{len(details):,} of {len(source):,} images are unreadable: {shown}"
    level: Level = "error" if len(details) > tolerated * len(source) else "warning"
    return Finding(name, level, text, "copy them again, or remove them", details)
