"""Reads gin files and bindings, and remembers which file binds what."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin.config_parser import BindingStatement, ImportStatement, IncludeStatement

from jigclu.config import messages, syntax
from jigclu.system.errors import UserError
from jigclu.system.files import expand_home

_PACKAGE = Path(__file__).resolve().parents[1]
# The folder that holds gin/: the package in a wheel (setup.cfg puts it there), else the checkout.
ROOT = _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent
_DYNAMIC = "__gin__.dynamic_registration"
# A line of a shipped file: name = value  # comment.
_BINDING = re.compile(r"^([\w./]+) = (.*?)(?:\s+#\s*(\S.*))?$")


class Layer(NamedTuple):
    """Bindings from one place, each of which overrides those of earlier layers.

    place: path of a gin file, whose included files are layers of their own, or "--gin_bindings".
    bindings: value of each name, in gin's syntax.
    """

    place: str
    bindings: dict[str, str]


def parse_file(file: str, valid: Sequence[str], allow_imports: bool = False) -> list[Layer]:
    """Makes gin read a file and the files that it includes.

    Args:
      file: path from the working directory, or name of one of the project's files.
      valid: names of configurables and bindings, of which errors suggest the nearest one.
      allow_imports: whether the files may import Python modules, which runs their code.

    Returns:
      Layers in the order in which gin reads them: included files first.

    Raises:
      UserError: a file does not exist, cannot be parsed, or has a forbidden import.
    """
    return list(_parse_file(_find(file, None), valid, allow_imports, ()))


def parse_binding(
    binding: str, valid: Sequence[str], allow_imports: bool = False
) -> dict[str, str]:
    """Makes gin read a binding of the command line; returns its name and value.

    Raises: as `parse_file`.
    """
    if re.match(r"\s*include\b", binding):
        raise UserError(f"--gin_bindings={binding!r} is not a binding; use --gin_file")
    with messages.one_line_errors(f"--gin_bindings={binding!r}", valid, is_flag=True):
        statements = syntax.statements(binding)
        _check_imports(statements, f"--gin_bindings={binding!r}", allow_imports)
        gin.parse_config(binding)
    return _bindings(statements)


def _check_imports(statements: Sequence[Any], place: str, allowed: bool) -> None:
    """Raises UserError for an import, which runs code, unless imports are allowed.

    `from __gin__ import dynamic_registration`, with which references can name any function of an
    imported module, is an import, too; with it, the names of the project's files are unknown.
    """
    for item in statements:
        if not isinstance(item, ImportStatement):
            continue
        if item.module == _DYNAMIC:
            raise UserError(
                f"{place}: `{item.format()}` is not supported: decorate your function with "
                "@gin.configurable, and import its module, which needs --allow_imports"
            )
        if not allowed:
            raise UserError(
                f"{place}: `{item.format()}` lets the configuration run any Python code: if you "
                "trust it, pass --allow_imports"
            )


def _parse_file(
    path: Path, valid: Sequence[str], allow_imports: bool, including: tuple[Path, ...]
) -> Iterator[Layer]:
    if path in including:
        raise UserError(f"{including[-1]} includes {path}, which includes it in turn")
    with messages.one_line_errors(str(path), valid):
        # Editors of Windows write a byte-order mark.
        text = path.read_text(encoding="utf-8-sig")
        statements = syntax.statements(text)
    _check_imports(statements, str(path), allow_imports)
    lines = text.splitlines()
    start = 0
    for statement in (item for item in statements if isinstance(item, IncludeStatement)):
        line = statement.location.line_num
        _parse_lines(path, lines, start, line - 1, statements, valid)
        try:
            included = _find(statement.filename, path.parent)
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from error
        yield from _parse_file(included, valid, allow_imports, (*including, path))
        start = line
    _parse_lines(path, lines, start, len(lines), statements, valid)
    yield Layer(str(path), _bindings(statements))


def _parse_lines(
    path: Path,
    lines: Sequence[str],
    start: int,
    stop: int,
    statements: Sequence[Any],
    valid: Sequence[str],
) -> None:
    """Makes gin read some lines of a file, together with the imports above them."""
    kept = {
        item.location.line_num - 1 for item in statements if isinstance(item, ImportStatement)
    } | set(range(start, stop))
    # Other lines become empty, so that errors have the line numbers of the file.
    text = "\n".join(line if index in kept else "" for index, line in enumerate(lines[:stop]))
    with messages.one_line_errors(str(path), valid):
        gin.parse_config(text)


def _bindings(statements: Sequence[Any]) -> dict[str, str]:
    """Returns the value of each name; names are those that gin.config_str uses."""
    found = {}
    for item in statements:
        if isinstance(item, BindingStatement):
            scope = f"{item.scope}/" if item.scope else ""
            # gin prints the shortest unambiguous name, without module.
            configurable = item.selector.rpartition(".")[2]
            argument = f".{item.arg_name}" if item.arg_name else ""
            found[f"{scope}{configurable}{argument}"] = repr(item.value)
    return found


def _find(file: str, including_folder: Path | None) -> Path:
    """Returns the path of a gin file.

    It is looked up in the folder of the file that includes it, if any, in the working directory,
    and in the project, with and without "gin/" in its name.
    """
    file = expand_home(file)
    folders = [including_folder] if including_folder is not None else []
    for folder in (*folders, Path(), ROOT, ROOT / "gin"):
        if (folder / file).is_file():
            return folder / file
    problem = "is a folder" if Path(file).is_dir() else "does not exist"
    names = {_short_name(name): name for name in shipped_files()}
    near = difflib.get_close_matches(_short_name(file), names, 1, 0.65)
    suggestion = f"; did you mean {names[near[0]]}?" if near else ""
    raise UserError(f"gin file {file} {problem}{suggestion}")


def _short_name(file: str) -> str:
    """Returns the name of a gin file without what all have in common."""
    return re.sub(r"^(.*/)?gin/|\.gin$", "", file)


def followed_file(layers: Sequence[Layer]) -> str | None:
    """Returns the last of the project's own run files in layers, such as gin/demo.gin, or None."""
    names = [_shipped_name(layer.place) for layer in layers]
    return next((name for name in reversed(names) if name and not is_base(name)), None)


def changes(layers: Sequence[Layer]) -> dict[str, tuple[str | None, str]]:
    """Returns the bindings that differ from the project's own files in layers.

    Each has its value in these files, or None, and its last value.
    """
    shipped: dict[str, str] = {}
    last: dict[str, str] = {}
    for layer in layers:
        last |= layer.bindings
        if _shipped_name(layer.place) is not None:
            shipped |= layer.bindings
    return {
        name: (shipped.get(name), value)
        for name, value in last.items()
        if shipped.get(name) != value
    }


def _shipped_name(place: str) -> str | None:
    """Returns the name of one of the project's own files, or None for another place."""
    path = Path(place).resolve()
    inside = path.is_relative_to((ROOT / "gin").resolve())
    return str(path.relative_to(ROOT.resolve())) if inside else None


def files_that_bind(name: str) -> list[str]:
    """Returns those of `default_files` that bind a name."""
    return [file for file in default_files() if name in described_bindings(file)]


def default_files() -> list[str]:
    """Returns the files of gin/base, except those for one data set, which bind DATA."""
    base = [file for file in shipped_files() if is_base(file)]
    return [file for file in base if "DATA" not in described_bindings(file)]


def is_base(file: str) -> bool:
    """Returns whether a gin file is one of gin/base, which are parts of the files that run."""
    return _find(file, None).resolve().parent == (ROOT / "gin" / "base").resolve()


def shipped_files() -> list[str]:
    """Returns the names of the project's own files, such as gin/demo.gin."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin"))


def first_comment(file: str) -> str:
    """Returns the first line of a shipped file's comment."""
    return opening_comment(file).splitlines()[0]


def opening_comment(file: str) -> str:
    """Returns the comment with which a shipped file starts, without its number signs."""
    head = (ROOT / file).read_text(encoding="utf-8").split("\n\n")[0]
    return re.sub(r"^# ?", "", head, flags=re.MULTILINE)


def described_bindings(file: str) -> dict[str, tuple[str, str | None]]:
    """Returns what a shipped file itself binds: value and comment of each name, on one line."""
    text = (ROOT / file).read_text(encoding="utf-8")
    # A value of several lines continues in indented lines, up to its last parenthesis, and a
    # comment in indented comments.
    text = re.sub(r"\n(?: +#|(?: +|(?=\))))", " ", text)
    matches = filter(None, map(_BINDING.match, text.splitlines()))
    return {match[1]: (match[2], match[3]) for match in matches}
