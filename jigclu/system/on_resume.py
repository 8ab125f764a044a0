"""Annotations of settings that a resumed run may change.

A setting determines what a run learns, and a resumed run must keep it, unless the type of its
field says otherwise: `workers: Free[int]`.
"""

import enum
import typing
from typing import Annotated, Any, TypeVar

_Value = TypeVar("_Value")


class Rule(enum.Enum):
    """What happens if a resumed run changes a setting.

    FIXED: it is rejected, because the run would learn something else.
    LOGGED: it is accepted and reported, because it affects the steps from there on.
    INITIAL: it is accepted and reported to have no effect, because only new runs read it.
    FREE: it is accepted, because it does not affect what is learned.
    BY_CONTENT: it is accepted if the fingerprint of the images is the same.
    SAME_WEIGHTS: it is accepted and reported if it names the same weights in another place.
    """

    FIXED = enum.auto()
    LOGGED = enum.auto()
    INITIAL = enum.auto()
    FREE = enum.auto()
    BY_CONTENT = enum.auto()
    SAME_WEIGHTS = enum.auto()


Logged = Annotated[_Value, Rule.LOGGED]
Initial = Annotated[_Value, Rule.INITIAL]
Free = Annotated[_Value, Rule.FREE]
ByContent = Annotated[_Value, Rule.BY_CONTENT]
SameWeights = Annotated[_Value, Rule.SAME_WEIGHTS]


def field_rules(owner: type) -> dict[str, Rule]:
    """Returns the rule of each annotated field of a class, by name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {name: _rule(hint) for name, hint in hints.items()}


def _rule(hint: Any) -> Rule:
    marks = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Rule)]
    return marks[0] if marks else Rule.FIXED
