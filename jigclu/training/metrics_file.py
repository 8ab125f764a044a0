"""The text record of a run: one JSON object per reported step, in the order of steps."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends to a JSON Lines file that has one object per step.

    What earlier processes have written after the last step to keep is dropped, since those steps
    are repeated, as is a line that a killed process has not completed.

    Args:
      path: of the file, which is created by the first values.
      last_kept: last step to keep; -1 for none.
      steps_per_epoch: for the epoch of a step.
      images_per_step: for the images of a step.

    Raises:
      OSError: the file cannot be written, here or later.
    """

    def __init__(
        self, path: Path, last_kept: int, steps_per_epoch: int, images_per_step: int
    ) -> None:
        self._path = path
        self._steps_per_epoch = steps_per_epoch
        self._images_per_step = images_per_step
        self._last: dict[str, Any] = {}
        # Bytes of the file before its last line.
        self._before_last = 0
        if not path.exists():
            return
        with open(path, "r+b") as file:
            end = 0
            for line in file:
                values = _parse(line)
                if values is None or values["step"] > last_kept:
                    break
                self._before_last, end, self._last = end, end + len(line), values
            file.truncate(end)

    def numbers(self, step: int) -> dict[str, float]:
        """Returns the numbers of a step, and its epoch, if it is the last of the file."""
        if self._last.get("step") != step:
            return {}
        others = ("step", "images", "time", "alarms")
        return {name: value for name, value in self._last.items() if name not in others}

    def add(self, step: int, values: Mapping[str, float | Sequence[str]]) -> None:
        """Adds values of a step, to its line if it has one; steps must not decrease.

        The line also has the step, the epoch (steps / steps per epoch), the images that the network
        has been trained on (each counts once per epoch), and the time, in seconds since 1970 (UTC).
        """
        if self._last.get("step") != step:
            epoch = round(step / self._steps_per_epoch, 4)
            images = step * self._images_per_step
            now = round(time.time(), 3)
            self._last = {"step": step, "epoch": epoch, "images": images, "time": now}
            self._before_last = self._path.stat().st_size if self._path.exists() else 0
        self._last |= values
        with open(self._path, "r+b" if self._path.exists() else "wb") as file:
            file.seek(self._before_last)
            file.write(json.dumps(self._last).encode() + b"\n")
            file.truncate()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line, or None if the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, without incomplete lines."""
    with open(path, "rb") as file:
        return [values for line in file if (values := _parse(line)) is not None]
