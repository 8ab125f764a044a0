"""One process of a run, with its device and settings."""

from pathlib import Path
from typing import NamedTuple

import torch

from jigclu.system.machine import Machine


class Process(NamedTuple):
    """One process of a run.

    workdir: output folder of the run.
    config: all effective bindings, one per line.
    device: of this process.
    machine: settings chosen for the machine.
    """

    workdir: Path
    config: str
    device: torch.device
    machine: Machine
