"""Values that people write, against type hints."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

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


class Half:
    def __call__(self, epoch: float, epochs: int) -> float:
        return epoch / 2


class Total:
    def __call__(self, values: list[float]) -> float:
        return sum(values)


def rule(epoch: float, epochs: int, factor: float = 1.0) -> float:
    return epoch * epochs * factor


def other(values: list[float]) -> float:
    return sum(values)


def open_file(path: str) -> File:
    return File(path)


def pass_on(reader: Reader) -> Reader:
    return reader


def untyped(path):  # type: ignore[no-untyped-def]
    return File(path)


class TypesTest(parameterized.TestCase):
    @parameterized.parameters(
        (3, int), (3, float), (3.5, float), ("a", str), (True, bool), (None, str | None),
        ("a", str | None), ((1, 2.5), tuple[float, float]), ([1, 2], tuple[float, float]),
        ((1, 2, 3), tuple[float, ...]), ([1], Sequence[float]), ((), Sequence[float]),
        (File("x"), Reader), (File("x"), Reader | None), (rule, Rule), (Pair(1, "a"), Pair),
        (Half(), Rule), ((File("x"), File("y")), tuple[Reader, ...]), ((), tuple[Reader, ...]),
        ("auto", Literal["auto"]), ("auto", bool | Literal["auto"]),
        (False, bool | Literal["auto"]),
    )  # fmt: skip
    def test_fits(self, value: Any, hint: Any) -> None:
        self.assertTrue(types.fits(value, hint))

    @parameterized.parameters(
        (3.0, int), (True, int), (True, float), ("3", int), (3, str), (1, bool), (None, str),
        (3, str | None), ((1, 2, 3), tuple[float, float]), ((1, "a"), tuple[float, float]),
        ("ab", Sequence[str]), (["a"], Sequence[float]), (3.0, tuple[float, float]),
        (File, Reader), (rule, Reader), (other, Rule), (3, Rule), ((1, "a"), Pair),
        (Half, Rule), (Total(), Rule), ((File("x"), 3), tuple[Reader, ...]),
        (File("x"), tuple[Reader, ...]), ("all", Literal["auto"]), (1, bool | Literal["auto"]),
    )  # fmt: skip
    def test_does_not_fit(self, value: Any, hint: Any) -> None:
        self.assertFalse(types.fits(value, hint))

    def test_parameter_hints(self) -> None:
        self.assertEqual(types.parameter_hints(Pair), {"first": int, "second": str | None})
        self.assertEqual(types.parameter_hints(File)["path"], str)
        self.assertEqual(types.parameter_hints(rule)["return"], float)

    @parameterized.parameters(
        (int, "int"), (str | None, "str or None"), (tuple[float, float], "tuple[float, float]"),
        (Sequence[float], "Sequence[float]"), (Pair, "Pair"),
        (bool | Literal["auto", "never"], "bool or 'auto' or 'never'"),
    )  # fmt: skip
    def test_spell(self, hint: Any, expected: str) -> None:
        self.assertEqual(types.spell(hint), expected)

    @parameterized.parameters(
        (int, (int,)), (Reader | None, (Reader, type(None))), (tuple[Reader, ...], (Reader,)),
        (Sequence[int | None], (int, type(None))), (tuple[int, str], (tuple[int, str],)),
    )  # fmt: skip
    def test_options(self, hint: Any, expected: tuple[Any, ...]) -> None:
        self.assertEqual(types.options(hint), expected)

    @parameterized.parameters(
        (tuple[int, ...], True), (Sequence[Reader], True), (tuple[int, int], False),
        (int, False), (tuple[int, ...] | None, False),
    )  # fmt: skip
    def test_is_sequence(self, hint: Any, expected: bool) -> None:
        self.assertEqual(types.is_sequence(hint), expected)

    @parameterized.parameters(
        (Reader, True, False), (Rule, True, True), (File, False, False), (int, False, False),
    )  # fmt: skip
    def test_protocols(self, hint: Any, is_protocol: bool, is_callable: bool) -> None:
        self.assertEqual(types.is_protocol(hint), is_protocol)
        if is_protocol:
            self.assertEqual(types.is_callable(hint), is_callable)

    @parameterized.parameters(
        (File, Reader), (File, File), (open_file, Reader), (open_file, File), (Half, Rule),
        (Pair, Pair),
    )  # fmt: skip
    def test_makes(self, function: Any, hint: Any) -> None:
        self.assertTrue(types.makes(function, hint))

    @parameterized.parameters(
        (Pair, Reader), (File, Pair), (Total, Rule), (File, Rule), (rule, Rule), (untyped, Reader),
        # It makes no reader: it returns the one it gets.
        (pass_on, Reader),
    )  # fmt: skip
    def test_does_not_make(self, function: Any, hint: Any) -> None:
        self.assertFalse(types.makes(function, hint))


if __name__ == "__main__":
    absltest.main()
