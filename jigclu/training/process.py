"""One process of a run: where it runs, and with which settings."""

from pathlib import Path
from typing import NamedTuple

import torch

from jigclu.system.machine import Machine


class Process(NamedTuple):
    """Where and how one process runs a task.

    workdir: folder of everything that the run writes.
    config: all effective bindings, one per line.
    device: of this process.
    machine: settings that depend on the machine, with their reasons.
    """

    workdir: Path
    config: str
    device: torch.device
    machine: Machine
