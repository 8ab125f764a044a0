"""gin's errors as one-line messages that suggest the nearest valid name."""

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gin

from jigclu.config import syntax
from jigclu.system import shell
from jigclu.system.errors import UserError

# Plain words for what gin's parser expected.
_SYNTAX = {
    "Expected newline": "a binding must end after its value",
    "Unable to parse value": "cannot read the value",
    "Couldn't parse statement, expected ':' or '='": "expected name = value",
    "Unexpected token": "expected name = value",
    "Expected ')'": "the parentheses of a reference are empty; bind its settings by name",
}
# Characters of a line, so that every binding stays on one; gin also draws lines of this length.
_LONG = 10**5
_GIN_ERRORS = (
    *(ValueError, TypeError, SyntaxError, OSError, RuntimeError, AttributeError, ImportError),
)


@contextmanager
def one_line_errors(where: str, valid: Sequence[str], is_flag: bool = False) -> Iterator[None]:
    """Converts gin's errors within a block into one-line user errors.

    Args:
      where: the file or binding being read.
      valid: names of configurables and bindings, of which the nearest one is suggested.
      is_flag: whether a binding of the command line is being read, or else a file.
    """
    # Before it raises, gin logs every folder in which it searched for an included file.
    logging.disable()
    try:
        yield
    except UserError as error:
        raise UserError(_name_readers(str(error).strip())) from error
    except _GIN_ERRORS as error:
        line = None if is_flag else _line_number(error)
        place = f"{where}, line {line}" if line else where
        raise UserError(f"{place}: {_explain(error, valid, is_flag)}") from error
    finally:
        logging.disable(logging.NOTSET)


def _name_readers(message: str) -> str:
    """Returns the first line of a message, and which bindings refer to a source that failed.

    Args:
      message: whose further lines are gin's, the first of them about the configurable that failed.
    """
    line, *calls = message.splitlines()
    if not re.match(r"[\w.]+: ", line):
        return line  # The value in the message tells which one failed.
    call = re.search(r"call to configurable '(\w+)'.*?(?: in scope '(.+)')?$", "\n".join(calls[:1]))
    if not call:
        return line
    reference = f"@{call[2]}/{call[1]}()" if call[2] else f"@{call[1]}()"
    bindings = _bindings()
    similar = [name for name, value in bindings if f"{call[1]}()" in value]
    readers = [name for name, value in bindings if reference in value]
    return f"{line} (read for {', '.join(readers)})" if readers and len(similar) > 1 else line


def _bindings() -> list[tuple[str, str]]:
    """Returns names and values of all bindings that gin has read."""
    lines = gin.config_str(_LONG).splitlines()
    return [(name, value) for name, equals, value in (x.partition(" = ") for x in lines) if equals]


def hint(name: str, valid: Sequence[str]) -> str:
    """Returns "; did you mean …?" with the nearest valid name, or "" if none is near."""
    spelled = {other.lower(): other for other in valid}
    near = difflib.get_close_matches(name.lower(), spelled, 1, 0.65)
    return f"; did you mean {spelled[near[0]]}?" if near else ""


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


def _line_number(error: Exception) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    match = re.search(r"In bindings string line (\d+)", str(error))
    return int(match[1]) if match else None


def _explain(error: Exception, valid: Sequence[str], is_flag: bool) -> str:
    if isinstance(error, RecursionError):
        return "a reference or macro refers to itself"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; save it in that encoding"
    if isinstance(error, SyntaxError):
        return _explain_syntax(error, valid, is_flag)
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip(" ^"))
    # The caller names the place already.
    message = re.sub(r" In bindings string line \d.*", "", message).rstrip(".")
    macro = re.search(r"configurable 'macro' .* in scope '(.+)'", message)
    if macro:
        near = hint(macro[1], [name for name, _ in _bindings() if "." not in name])
        return f"%{macro[1]} is read but not bound; bind it as {macro[1]} = …{near}"
    unknown = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message)
    if unknown:
        names = [name for name in valid if "." not in name]
        return message + (hint(unknown[1], names) or "; docs/configuration.md lists all names")
    parameter = re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message)
    return message + (_hint_binding(parameter[1], parameter[2], valid) if parameter else "")


def _explain_syntax(error: SyntaxError, valid: Sequence[str], is_flag: bool) -> str:
    line = (error.text or "").strip()
    message = error.msg.splitlines()[-1].strip().rstrip(".")
    message = _SYNTAX.get(message.partition(".")[0], message)
    word = re.search(r"Failed to parse token '([^']*)'", message)
    if word:
        message = f"cannot read the value {word[1]}"
    if not is_flag:
        message = f"{message} in {line!r}"
    corrected = syntax.correct(line, [name for name in valid if "." not in name])
    if not corrected or corrected == [line]:
        return message
    if is_flag:
        return f"{message}; use " + " ".join(
            f"--gin_bindings={shell.quote(part)}" for part in corrected
        )
    return f"{message}; write {' and, on a line of its own, '.join(corrected)}"


def _hint_binding(configurable: str, parameter: str, valid: Sequence[str]) -> str:
    """Suggests bindings of the same parameter, the nearest one, or all of the configurable."""
    name, prefix = f"{configurable}.{parameter}", f"{configurable}."
    own = [other.removeprefix(prefix) for other in valid if other.startswith(prefix)]
    near = difflib.get_close_matches(parameter, own, 1)
    return (
        suggest_same(name, [other for other, _ in _bindings()])
        or (f"; did you mean {prefix}{near[0]}?" if near else "")
        or suggest_same(name, valid)
        or (f"; it has {', '.join(own)}" if own else "")
    )


def suggest_same(name: str, valid: Sequence[str]) -> str:
    """Returns "; did you mean …?" with bindings of the same parameter, or "" without any."""
    unscoped = dict.fromkeys(other.rpartition("/")[2] for other in valid)
    parameter = name.rpartition(".")[2]
    same = [other for other in unscoped if other.endswith(f".{parameter}")]
    near = difflib.get_close_matches(name, same, 3, 0.0)
    return f"; did you mean {' or '.join(near)}?" if near else ""
