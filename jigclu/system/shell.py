"""Quoting for a shell, in the quotes that are easier to read."""

import shlex
from collections.abc import Iterable

_SPECIAL_IN_DOUBLE_QUOTES = set('"$`\\!')


def quote(word: str) -> str:
    """Returns a word as one argument of a command: in double quotes, if it has no others."""
    single = shlex.quote(word)
    return single if single == word or set(word) & _SPECIAL_IN_DOUBLE_QUOTES else f'"{word}"'


def join(words: Iterable[str]) -> str:
    """Returns words as a command."""
    return " ".join(map(quote, words))
