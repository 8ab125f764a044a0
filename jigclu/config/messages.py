"""gin's errors as one-line messages that suggest the nearest valid name."""

import dataclasses
import difflib
import logging
import re
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jigclu.system.errors import UserError

_GIN_ERRORS = (
    *(ValueError, TypeError, SyntaxError, OSError, RuntimeError, AttributeError, ImportError),
    tokenize.TokenError,
)


@contextmanager
def one_line_errors(where: str, valid: Sequence[str]) -> Iterator[None]:
    """Converts gin's errors within a block into one-line user errors.

    Args:
      where: the file or binding being read.
      valid: names of configurables and bindings, of which the nearest one is suggested.
    """
    # Before it raises, gin logs every folder in which it searched for an included file.
    logging.disable()
    try:
        yield
    except UserError as error:
        # gin appends the chain of calls after our line.
        raise UserError(str(error).strip().splitlines()[0]) from error
    except _GIN_ERRORS as error:
        raise UserError(f"{where}: {_explain(error, valid)}") from error
    finally:
        logging.disable(logging.NOTSET)


def hint(name: str, valid: Sequence[str]) -> str:
    """Returns "; did you mean …?" with the nearest valid name, or "" if none is near."""
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def find_owner(root: Any, path: Sequence[str], field: str) -> Any:
    """Returns the object in a tree of dataclasses that has a field, or None.

    Args:
      root: of the tree.
      path: fields that lead from the root to the object; empty to search, breadth first.
      field: of the object.
    """
    if path:
        for name in path:
            root = getattr(root, name, None)
        return root if _has_field(root, field) else None
    level = [root]
    while level:
        for item in level:
            if _has_field(item, field):
                return item
        level = [child for item in level for child in _children(item)]
    return None


def _has_field(item: Any, name: str) -> bool:
    return dataclasses.is_dataclass(item) and any(f.name == name for f in dataclasses.fields(item))


def _children(item: Any) -> list[Any]:
    if isinstance(item, (tuple, list)):
        return list(item)
    if not dataclasses.is_dataclass(item):
        return []
    return [getattr(item, field.name) for field in dataclasses.fields(item)]


def _explain(error: Exception, valid: Sequence[str]) -> str:
    if isinstance(error, RecursionError):
        return "a reference or macro refers to itself"
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip(" ^"))
    # The caller names the binding already.
    message = re.sub(r" In bindings string line \d.*", "", message).rstrip(".")
    macro = re.search(r"configurable 'macro' .* in scope '(.+)'", message)
    if macro:
        return f"%{macro[1]} is read but not bound; bind it as {macro[1]} = …"
    word = re.search(r"Failed to parse token '([^']*)'", message)
    if word:
        return f"cannot read the value {word[1]}; put text in quotes: '{word[1]}'"
    unknown = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message)
    if unknown:
        return message + hint(unknown[1], valid)
    parameter = re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message)
    return message + (_hint_binding(parameter[1], parameter[2], valid) if parameter else "")


def _hint_binding(configurable: str, parameter: str, valid: Sequence[str]) -> str:
    """Suggests bindings of the same parameter, or else the nearest binding."""
    name = f"{configurable}.{parameter}"
    same = [other for other in valid if other.endswith(f".{parameter}")]
    near = difflib.get_close_matches(name, same, 3, 0.0)
    return f"; did you mean {' or '.join(near)}?" if near else hint(name, valid)
