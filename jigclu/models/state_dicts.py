"""Comparison of two dicts of tensors."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from jigclu.system.errors import UserError

_SHOWN_KEYS = 3


def describe_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Returns one line that names the keys that differ between two dicts of tensors, or None."""
    missing, unexpected, mismatched = differences(expected, found)
    parts = [
        f"{len(keys)} {title}: {first(keys)}"
        for title, keys in (
            ("missing", [f"{key} {_shape(expected[key])}" for key in missing]),
            ("unexpected", [f"{key} {_shape(found[key])}" for key in unexpected]),
            ("of another shape", mismatched),
        )
        if keys
    ]
    return "; ".join(parts) or None


def differences(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Returns the missing and the unexpected keys of found, and those with another shape.

    The last are described as "key [found shape] instead of [expected shape]".
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    mismatched = [
        f"{key} {_shape(found[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    return missing, unexpected, mismatched


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def first(keys: list[str]) -> str:
    """Returns the first few keys, and the number of the others."""
    rest = len(keys) - _SHOWN_KEYS
    return ", ".join(keys[:_SHOWN_KEYS]) + (f" and {rest} more" if rest > 0 else "")


def load_strict(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Returns the found tensors in the order of expected; all keys and shapes must be equal.

    Args:
      found: tensors of a checkpoint.
      expected: tensors of the model.
      path: path of the checkpoint, for the message.

    Raises:
      UserError: the keys or shapes differ.
    """
    mismatch = describe_mismatch(expected, found)
    if mismatch:
        raise UserError(
            f"checkpoint {path} is of another architecture: {mismatch}; "
            "use the configuration it was trained with, or another workdir"
        )
    return {key: found[key] for key in expected}
