"""Values that people write, against type hints."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from absl.testing import absltest, parameterized

from jigclu.config import types


class Reader(Protocol):
    def read(self) -> int: ...


class Rule(Protocol):
    def __call__(self, epoch: float, epochs: int) -> float: ...


class File:
    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> int:
        return 1


class Pair(NamedTuple):
    first: int
    second: str | None


def rule(epoch: float, epochs: int, factor: float = 1.0) -> float:
    return epoch * epochs * factor


def other(values: list[float]) -> float:
    return sum(values)


class HintsTest(parameterized.TestCase):
    @parameterized.parameters(
        (3, int), (3, float), (3.5, float), ("a", str), (True, bool), (None, str | None),
        ("a", str | None), ((1, 2.5), tuple[float, float]), ([1, 2], tuple[float, float]),
        ((1, 2, 3), tuple[float, ...]), ([1], Sequence[float]), ((), Sequence[float]),
        (File("x"), Reader), (File("x"), Reader | None), (rule, Rule), (Pair(1, "a"), Pair),
    )  # fmt: skip
    def test_fits(self, value: Any, hint: Any) -> None:
        self.assertTrue(types.fits(value, hint))

    @parameterized.parameters(
        (3.0, int), (True, int), (True, float), ("3", int), (3, str), (1, bool), (None, str),
        (3, str | None), ((1, 2, 3), tuple[float, float]), ((1, "a"), tuple[float, float]),
        ("ab", Sequence[str]), (["a"], Sequence[float]), (3.0, tuple[float, float]),
        (File, Reader), (rule, Reader), (other, Rule), (3, Rule), ((1, "a"), Pair),
    )  # fmt: skip
    def test_does_not_fit(self, value: Any, hint: Any) -> None:
        self.assertFalse(types.fits(value, hint))

    def test_hints_of(self) -> None:
        self.assertEqual(types.parameter_hints(Pair), {"first": int, "second": str | None})
        self.assertEqual(types.parameter_hints(File)["path"], str)
        self.assertEqual(types.parameter_hints(rule)["return"], float)

    @parameterized.parameters(
        (int, "int"), (str | None, "str or None"), (tuple[float, float], "tuple[float, float]"),
        (Sequence[float], "Sequence[float]"), (Pair, "Pair"),
    )  # fmt: skip
    def test_spell(self, hint: Any, expected: str) -> None:
        self.assertEqual(types.spell(hint), expected)


if __name__ == "__main__":
    absltest.main()
