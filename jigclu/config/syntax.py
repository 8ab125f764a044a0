"""gin's syntax: statements of a text, and corrections of common mistakes."""

import io
import re
import tokenize
from collections.abc import Collection
from typing import Any, NamedTuple

from gin.config_parser import ConfigParser, ParserDelegate

from jigclu.config import sizes

# Macros of the run files, which a value reads as %DATA.
_MACROS = ("DATA", "SIZE", *sizes.DERIVED)
# Constants of other languages.
_CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}
_INCLUDE = re.compile(r"include\s+['\"]?([^'\"]+?)['\"]?\s*$")
_STATEMENT = re.compile(r"[\s-]*([\w./]+)\s*(?:==|=|:)\s*(.+?)\s*$")
_NEXT_STATEMENT = re.compile(r"[\s,;]+(?=[a-zA-Z_][\w/]*\.\w+\s*=)")
_QUOTED_OR_REFERENCE = re.compile(r"('[^']*'|\"[^\"]*\"|[@%][\w./]+(?:\(\))?)")
_WORD = re.compile(r"(?<![\w.])[a-zA-Z_][\w./-]*(?:\(\))?")
_PATH = re.compile(r"(?:[a-zA-Z]:)?[~.\w%-]*[/\\\\][^'\"()@]*")


class _Text(NamedTuple):
    """A reference or macro as it is written."""

    text: str

    def __repr__(self) -> str:
        return self.text


class _AsWritten(ParserDelegate):
    """Parses references and macros without looking them up."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Text:
        return _Text(f"@{scoped_configurable_name}{'()' * evaluate}")

    def macro(self, macro_name: str) -> _Text:
        return _Text(f"%{macro_name}")


def statements(text: str) -> list[Any]:
    """Returns gin's statements in a text, with references and macros as they are written.

    Raises:
      SyntaxError: a bracket is not closed.
      Exception: of many kinds, for other text that gin cannot parse.
    """
    try:
        return list(ConfigParser(text, _AsWritten()))
    except tokenize.TokenError as error:
        raise _unclosed_bracket(text) or error from error
    except SyntaxError as error:
        # A bracket is not closed if a statement begins in it.
        if not _STATEMENT.match(error.text or ""):
            raise
        before = "".join(text.splitlines(keepends=True)[: (error.lineno or 1) - 1])
        raise _unclosed_bracket(before) or error from error


def _unclosed_bracket(text: str) -> SyntaxError | None:
    """Returns the error about the last bracket that a text opens and does not close, if any."""
    opened: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP and token.string in "([{":
                opened.append(token)
            elif token.type == tokenize.OP and token.string in ")]}" and opened:
                opened.pop()
    except (tokenize.TokenError, SyntaxError):
        pass
    if not opened:
        return None
    (line, column), first = opened[-1].start, opened[-1].line.splitlines()[0]
    return SyntaxError(f"{opened[-1].string} is not closed", (None, line, column, first))


def correct(line: str, configurables: Collection[str]) -> list[str]:
    """Corrects a line that gin cannot parse.

    Args:
      line: with one binding, with several, which gin does not accept, or with an include.
      configurables: names that a reference may have.

    Returns:
      The corrected statements, or none if the mistake is not a common one.
    """
    include = _INCLUDE.match(line)
    if include:
        return [f"include '{include[1]}'"]
    corrected = []
    for part in _NEXT_STATEMENT.split(line.partition("#")[0].strip().rstrip(",;")):
        match = _STATEMENT.match(part)
        binding = f"{match[1]} = {_correct_value(match[2], configurables)}" if match else ""
        if not _is_readable(binding):
            return []
        corrected.append(binding)
    return corrected


def similar_values(value: str, configurables: Collection[str]) -> list[str]:
    """Returns values that a user may have meant by a value of the wrong type.

    Args:
      value: as gin prints it.
      configurables: names that a reference may have.
    """
    text = value.strip("'\"")
    unquoted = _correct_value(text, configurables) if text else value
    called = re.sub(r"(@[\w./]+)(?![\w./(])", r"\1()", unquoted)
    nothing = ["()"] if value == "None" else []
    return [text, called, f"({called},)", value.removesuffix(".0"), *nothing]


def _correct_value(value: str, configurables: Collection[str]) -> str:
    if value[0] in "'\"" and value[0] not in value[1:]:
        return value + value[0]
    if _PATH.fullmatch(value) and value.split("/")[-1].removesuffix("()") not in configurables:
        return f"'{value}'"

    def correct_word(match: re.Match[str]) -> str:
        word = match[0].removesuffix("()")
        if word.rpartition("/")[2] in configurables:
            return f"@{word}()"
        if word in ("True", "False", "None"):
            return word
        if word in _MACROS:
            return f"%{word}"
        return _CONSTANTS.get(word.lower(), f"'{word}'")

    parts = _QUOTED_OR_REFERENCE.split(value)
    parts[::2] = [_WORD.sub(correct_word, part) for part in parts[::2]]
    text = "".join(parts)
    return f"({text})" if "," in text and text[0] not in "([{" else text


def _is_readable(binding: str) -> bool:
    try:
        return len(statements(binding)) == 1
    except Exception:  # gin raises many kinds of errors for invalid text.
        return False
