"""What the checkpoint of a detector says about its training besides tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jigclu.system import tensor_files
from jigclu.system.errors import UserError

# Keys in the trainer's part of the checkpoint.
CLASSES, SETTINGS = "class_names", "settings"
# Holds the name of the last checkpoint of a run.
LAST_CHECKPOINT = "last_checkpoint"
# A resumed run has them from its checkpoint, or cannot have other ones.
FIXED_SETTINGS = (
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.AMP.ENABLED",
    "MODEL.BACKBONE.FREEZE_AT",
)


def last_checkpoint(folder: Path) -> str | None:
    """Returns the path of a run's last checkpoint; None if its folder holds none."""
    last = folder / LAST_CHECKPOINT
    if not last.exists():
        return None
    try:
        checkpoint = last.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        checkpoint = ""
    if not checkpoint:
        raise UserError(
            f"{last} is empty or unreadable: write the name of a checkpoint in this folder into "
            "it, such as model_0004999.pth"
        )
    return str(folder / checkpoint)


def read_classes(weights: str) -> list[str] | None:
    """Returns the class names of a detector; None if the file does not hold them."""
    classes = _trainer_state(weights).get(CLASSES)
    return None if classes is None else list(classes)


def check_classes(weights: str, classes: Sequence[str]) -> str | None:
    """Rejects data whose classes are not those that a detector was trained on.

    Args:
      weights: file or URL of the detector; only .pth files on this machine are read.
      classes: class names of the data, in the order of their numbers.

    Returns:
      A message if the file does not hold class names, as files of other projects; else None.

    Raises:
      UserError: other names, or another order.
    """
    trained = read_classes(weights)
    if trained is None:
        return f"{weights} holds no class names: check that its classes are {', '.join(classes)}"
    if trained != list(classes):
        raise UserError(
            f"weights {weights} were trained on the classes {', '.join(trained)}, but the data "
            f"have {', '.join(classes)}: use the same names in the same order"
        )
    return None


def check_resumed(weights: str, settings: Mapping[str, Any], iterations: int) -> None:
    """Rejects settings with which a run cannot be resumed.

    Args:
      weights: checkpoint of the run.
      settings: values of `FIXED_SETTINGS`.
      iterations: number at which training is to end.

    Raises:
      UserError: another value, fewer iterations than trained, or not a checkpoint of this command.
    """
    state = _trainer_state(weights)
    trained = state.get(SETTINGS)
    if not isinstance(trained, Mapping):
        raise UserError(
            f"--resume: {weights} does not hold the settings of its training: start a new run "
            "from it with MODEL.WEIGHTS and another OUTPUT_DIR"
        )
    changed = [
        f"{key} is {value}, but the run was started with {trained.get(key)}"
        for key, value in settings.items()
        if trained.get(key) != value
    ]
    if changed:
        raise UserError(
            f"--resume: {'; '.join(changed)}: use the same values, or start a new run in another "
            "OUTPUT_DIR"
        )
    done = state["iteration"] + 1
    if done > iterations:
        raise UserError(
            f"--resume: SOLVER.MAX_ITER is {iterations}, but {weights} was trained for {done} "
            "iterations already: use as many or more"
        )


def _trainer_state(weights: str) -> Mapping[str, Any]:
    if "://" in weights or not weights.endswith(".pth"):
        return {}
    state = tensor_files.read(Path(weights), "cpu").get("trainer")
    return state if isinstance(state, Mapping) else {}
