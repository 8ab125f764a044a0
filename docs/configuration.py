"""Writes docs/configuration.md, the reference of all settings, from the code and the gin files.

    PYTHONPATH=. python docs/configuration.py

Types come from annotations, descriptions from docstrings, ranges from the calls of `check` in
constructors, and defaults, units and sources from the bindings and comments of the gin files.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ranges import find_ranges

from jigclu.config import gin_files, registry, types

PAGE = Path(__file__).with_name("configuration.md")
INTRODUCTION = """\
# Configuration reference

Every setting that a gin file or `--gin_bindings` can bind, by the name that comes before the dot:
`pretrain.batch_size = 256` binds `batch_size` of `pretrain`. [Gin on one page](gin.md) explains the
syntax.

- **Default** is the value that the files in `gin/base/` bind (except those for one data set), or
  for tasks without a file there `gin/<task>.gin`. If files differ, each value stands with its file.
  Run files override some of them; `--dry_run` prints what is in force. "Required" means that no
  shared file binds it.
- **Source** is the paper or the choice behind the default, by the letters that the
  [last section](#sources-of-the-defaults) lists for each file.
- A type such as `@sgd()` is a reference to an object whose settings are on this page, too. A
  `Source` is any of the [images](#images) below.
"""
# A field of a docstring, "name: text", with its continuation lines, which are indented further.
_FIELD = re.compile(r"^( *)(\w+(?:, \w+)*): (.+(?:\n\1 +\S.*)*)", re.MULTILINE)
# The origin of a value at the end of a comment, "pixels [P: section 3]", and that of a letter.
_SOURCE = re.compile(r"\s*\[([A-Z](?::[^\]]*)?)\]")
_LETTER = re.compile(r"\[([A-Z])\] is (.+?)(?=; (?:\[|all else)|(?<! al)\.(?: |$))")
_GROUP = re.compile(r'^    (?:# (?P<group>.+)\.|"(?P<name>\w+)": .+)$', re.MULTILINE)
_SENTENCE = re.compile(r".+?[^l]\.(?= |$)|.+")
_HEADER = "| name | meaning | type | default | unit or note | range | source |"
_SHORT = 5  # References that a type lists; a longer list is replaced by the name of the type.


class Default(NamedTuple):
    """A binding of a gin file: the file, and the value with its unit and its source."""

    file: str
    value: str
    unit: str
    source: str


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the whole page.

    Raises:
      ValueError: a field has no description.
    """
    parts = [INTRODUCTION]
    defaults = _defaults()
    for group, names in _groups():
        parts.append(f"## {group}\n")
        parts += [_section(name, defaults) for name in names]
    parts += [_files(), _sources()]
    return "\n".join(parts)


def _groups() -> Iterator[tuple[str, list[str]]]:
    """Yields the configurables under the comments that group them in the registry."""
    text = inspect.getsource(registry).partition("CONFIGURABLES:")[2].partition("\n}")[0]
    group, names = "The task to run", list[str]()
    for match in _GROUP.finditer(text):
        if match["name"]:
            names.append(match["name"])
        else:
            yield group, names
            group, names = match["group"], []
    yield group, names


def _section(name: str, defaults: dict[str, list[Default]]) -> str:
    function = registry.CONFIGURABLES[name]
    lines = [f"### {name}\n", f"{_summary(function)}\n"]
    descriptions, ranges = _descriptions(function), find_ranges(function)
    hints = types.parameter_hints(function)
    parameters = inspect.signature(function).parameters
    missing = [f"{name}.{field}" for field in parameters if field not in descriptions]
    if missing:
        raise ValueError(
            f"no description of {', '.join(missing)}: add to the docstring of "
            f"{_owner(function).__qualname__} in {_owner(function).__module__}, under Attributes: "
            "or Args:, a line `name: what it is.`"
        )
    if parameters:
        lines += [_HEADER, "|---" * 7 + "|"]
    for field, parameter in parameters.items():
        optional = parameter.default is not parameter.empty
        bound = sorted(defaults.get(f"{name}.{field}", []), key=lambda item: item.file != name)
        value, unit, source = _shown(bound, optional)
        cells = [
            f"`{field}`",
            descriptions[field],
            _type(hints[field]),
            value,
            unit,
            ranges.get(field, ""),
            source,
        ]
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Escapes what Markdown would read as the end of a cell or as emphasis."""
    in_code = text.split("`")
    in_code[::2] = [re.sub(r"([*<])", r"\\\1", part) for part in in_code[::2]]
    return "`".join(in_code).replace("|", "\\|")


def _owner(function: Callable[..., Any]) -> Any:
    """Returns the class that a configurable is or returns, or else the function itself."""
    made = function if inspect.isclass(function) else types.parameter_hints(function).get("return")
    return made if inspect.isclass(made) and not types.is_protocol(made) else function


def _documents(function: Callable[..., Any]) -> Iterator[str]:
    """Yields the docstrings that may describe the fields of a configurable, the nearest first."""
    yield inspect.getdoc(function) or ""
    for owner in inspect.getmro(_owner(function)) if inspect.isclass(_owner(function)) else ():
        if owner.__module__.startswith("jigclu"):
            yield inspect.cleandoc(vars(owner).get("__doc__") or "")
            yield inspect.cleandoc(getattr(vars(owner).get("__init__"), "__doc__", None) or "")


def _summary(function: Callable[..., Any]) -> str:
    """Returns the first paragraph of a configurable's docstring, and the module that has it."""
    first = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return f"{first.rstrip('.')}. Code: `{function.__module__}`."


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for document in _documents(function):
        for _, names, text in _FIELD.findall(document):
            for name in names.split(", "):
                found.setdefault(name, " ".join(text.split()).rstrip("."))
    return found


def _type(hint: Any) -> str:
    expected = registry.spell_expected(hint)
    references = re.findall(r"@\w+\(\)", expected)
    if len(references) > _SHORT:
        return f"`{types.spell(hint)}`".replace("jigclu.data.sources.", "")
    if not references:
        return f"`{expected}`"
    more = " or None" if "None" in expected else ""
    start = "tuple of " if types.is_sequence(hint) else ""
    return start + ", ".join(f"`{reference}`" for reference in references) + more


def _defaults() -> dict[str, list[Default]]:
    """Returns the bindings of gin/base, and of gin/<name>.gin what gin/base does not bind."""
    found: dict[str, list[Default]] = {}
    base = gin_files.default_files()
    others = [file for file in gin_files.shipped_files() if not gin_files.is_base(file)]
    for file in (*base, *others):
        for name, (value, comment) in gin_files.described_bindings(file).items():
            stem = Path(file).stem
            if file in base or (name not in found and name.startswith(f"{stem}.")):
                found.setdefault(name, []).append(_default(stem, value, comment))
    return found


def _default(stem: str, value: str, comment: str | None) -> Default:
    text = comment or ""
    sources = [match[1] for match in _SOURCE.finditer(text)]
    unit = " ".join(_SOURCE.sub("", text).split())
    return Default(stem, value, unit, "; ".join(sources))


def _shown(defaults: list[Default], optional: bool) -> tuple[str, str, str]:
    """Returns the cells of default, unit and source; several values stand with their files."""
    if not defaults:
        return "optional" if optional else "required", "", ""
    unit = next((default.unit for default in defaults if default.unit), "")
    if len({default.value for default in defaults}) == 1:
        source = next((default.source for default in defaults if default.source), "")
        return f"`{defaults[0].value}`", unit, source
    values = _by_file((f"`{default.value}`", default.file) for default in defaults)
    sources = _by_file((default.source, default.file) for default in defaults if default.source)
    return values, unit, sources


def _by_file(texts: Iterable[tuple[str, str]]) -> str:
    """Returns different texts, each with the files that it is from."""
    files: dict[str, list[str]] = {}
    for text, file in texts:
        files.setdefault(text, []).append(file)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in files.items())


def _files() -> str:
    lines = [
        "## Gin files\n",
        "`gin/base/` has the parts that the others include; the others can be run.\n",
        "| file | contents |",
        "|---|---|",
    ]
    for file in gin_files.shipped_files():
        paragraph = " ".join(gin_files.opening_comment(file).split("\n\n")[0].split())
        lines.append(f"| `{file}` | {_cell(_SENTENCE.match(paragraph)[0])} |")
    return "\n".join(lines) + "\n"


def _sources() -> str:
    lines = ["## Sources of the defaults\n", "| letter | meaning | files |", "|---|---|---|"]
    found: dict[tuple[str, str], list[str]] = {}
    for file in gin_files.shipped_files():
        head = " ".join(gin_files.opening_comment(file).split())
        for letter, text in _LETTER.findall(head):
            found.setdefault((letter, text), []).append(f"`{file}`")
    lines += [
        f"| {letter} | {_cell(text)} | {', '.join(files)} |"
        for (letter, text), files in sorted(found.items())
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
