"""Settings of all tasks with an encoder, whose weights may come from anywhere."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from jigclu.models.encoder import Encoder, create_encoder, encoder_tensors
from jigclu.models.weights import match_weights, select_weights
from jigclu.system.errors import UserError, naming
from jigclu.training import checkpoint, initial_weights

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class EncoderTask:
    """Settings of an encoder.

    Attributes:
      encoder: name of the network, such as "resnet50" or "timm/convnext_tiny"; "auto" for that of
        the weights.
      small_stem: whether the encoder starts with a 3x3 convolution, for small images; "auto" as
        in the weights.
      init_from: initial weights: a workdir, an export, a file or "jigclu_200e", see
        `initial_weights.find`; None for random ones.
    """

    encoder: str
    small_stem: bool | Literal["auto"]
    init_from: str | None

    def starting_checkpoint(self, workdir: Path) -> Path | None:
        """Returns the checkpoint of this project with which a run in the workdir continues."""
        del workdir
        return None

    def new_encoder(self, dilated_stages: int = 0) -> Encoder:
        """Builds the encoder with random weights; for `dilated_stages` see `create_encoder`.

        Raises:
          UserError: the encoder is unknown, or still "auto".
        """
        if self.encoder == AUTO or not isinstance(self.small_stem, bool):
            name, usual = ("encoder", "resnet50") if self.encoder == AUTO else ("small_stem", False)
            raise UserError(
                f"{name} is {AUTO!r}, but there are no weights to recognize it from: bind "
                f"init_from, or bind it to a value such as {usual!r}"
            )
        return create_encoder(self.encoder, self.small_stem, dilated_stages)

    def downloads(self, workdir: Path) -> list[str]:
        """Returns a line of the plan if initial weights have to be downloaded."""
        if self.init_from is None or self.starting_checkpoint(workdir) is not None:
            return []
        place = initial_weights.find(self.init_from)
        return [f"downloads: {place.release.url} to {place.path}"] if place.release else []

    def check_encoder(self) -> None:
        """Checks that the encoder exists, and that `init_from` holds its weights; never downloads.

        Raises:
          UserError: the encoder is unknown, or the file does not hold all of its weights.
        """
        with torch.device("meta"):
            encoder = self.new_encoder()
        if self.init_from is None:
            return
        with naming("init_from"):
            place = initial_weights.find(self.init_from)
            if place.release is None:
                weights = initial_weights.read(self.init_from, self.encoder)
                match_weights(weights, encoder_tensors(encoder), place.path)
            elif place.release.architecture != (self.encoder, self.small_stem):
                raise UserError(
                    f"{self.init_from} holds {place.release.architecture}: bind these, or both to "
                    f"{AUTO!r}"
                )


Task = TypeVar("Task", bound=EncoderTask)


def resolve_encoder(task: Task, workdir: Path) -> Task:
    """Returns a task whose encoder and stem are known, if it has weights; never downloads.

    Args:
      task: "auto" settings of its encoder become those of its weights.
      workdir: of the run, which may hold a checkpoint to resume.

    Raises:
      UserError: the weights are missing, unreadable, or of no encoder that is known.
    """
    if AUTO not in (task.encoder, task.small_stem):
        return task
    path = task.starting_checkpoint(workdir)
    if path is not None:
        known = select_weights(checkpoint.peek(path), path).architecture
        return _in_place_of_auto(task, known._asdict())
    if task.init_from is None:
        return task
    if task.encoder != AUTO:
        with torch.device("meta"):  # An unknown one is not a fault of the weights.
            create_encoder(task.encoder, small_stem=False)
    with naming("init_from"):
        known = initial_weights.architecture(task.init_from, task.encoder)
    return _in_place_of_auto(task, known._asdict())


def without_weights(task: Task, like: EncoderTask) -> Task:
    """Returns a task with random weights, and the encoder of another task in place of "auto"."""
    known = {"encoder": like.encoder, "small_stem": like.small_stem}
    return dataclasses.replace(_in_place_of_auto(task, known), init_from=None)


def _in_place_of_auto(task: Task, known: Mapping[str, str | bool]) -> Task:
    # dataclasses.replace would check the task again, which reads the names of all images.
    resolved = copy.copy(task)
    for name, value in known.items():
        if getattr(task, name) == AUTO:
            object.__setattr__(resolved, name, value)
    return resolved
