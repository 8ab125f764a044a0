"""The error for invalid user input."""

from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """Escapes the parts of file names that are not UTF-8, which cannot be printed or saved."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UserError(ValueError):
    """Invalid user input, reported as one line without a traceback.

    The message names the setting, its value, the expected values and what to do.
    `jigclu.launch` prints it and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # An error of a worker process arrives as its traceback, which ends with our message.
        own = message.rpartition(f"{__name__}.UserError: ")[2]
        lines = [line.strip() for line in own.strip().splitlines()]
        super().__init__(printable(" ".join(lines)))


def check(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises UserError unless the condition holds.

    Args:
      condition: whether the value is in range; False for NaN.
      name: of the setting, as its owner spells it.
      value: of the setting.
      expected: completes "it must be …".
    """
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {expected}")


@contextmanager
def naming(setting: str) -> Iterator[None]:
    """Puts a setting before the message of a UserError: "root: /data is not a folder"."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
