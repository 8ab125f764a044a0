"""Checks that the state of a run is finite."""

from collections.abc import Mapping

from torch import Tensor

from jigclu.models.state_dicts import first
from jigclu.ops.optim import all_finite
from jigclu.system.errors import UserError


class Diverged(UserError):
    """A run has produced numbers that are not finite, and cannot continue."""


def check_finite(tensors: Mapping[str, Tensor], owner: str, advice: str) -> None:
    """Raises Diverged, which names them, if tensors have infinite or NaN elements.

    Waits for the device once if there are none.

    Args:
      tensors: on one device; those of integers are ignored.
      owner: of the tensors, for the message.
      advice: what to do.
    """
    values = {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and value.numel()
    }
    if not values or bool(all_finite(list(values.values()))):
        return
    broken = [name for name, value in values.items() if not value.isfinite().all()]
    raise Diverged(f"{owner} has values that are not finite in {first(broken)}: {advice}")
