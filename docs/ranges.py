"""Finds the range of each field of a configurable: the texts of its calls of `check`.

Constructors check their values by `check(condition, "name", value, "expected")`, often in
functions that several of them share. These calls are found in the source code, without running it.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from jigclu.system.errors import check

_CONSTRUCTORS = ("__post_init__", "__init__")
_DEPTH = 4  # Functions that call each other.


def find_ranges(function: Callable[..., Any]) -> dict[str, str]:
    """Returns what each checked field of a class or function must be, by name."""
    found: dict[str, list[str]] = {}
    for name, expected in _of_callable(function, {}, _DEPTH):
        if name in inspect.signature(function).parameters:
            texts = found.setdefault(name, [])
            if expected not in texts:
                texts.append(expected)
    return {name: "; ".join(texts) for name, texts in found.items()}


def _of_callable(function: Any, arguments: dict[str, Any], depth: int) -> Iterator[tuple[str, str]]:
    """Yields name and text of the checks in a function, or in the constructors of a class."""
    if not inspect.isclass(function):
        yield from _Function(function, None, arguments, depth).checks()
        return
    for owner in inspect.getmro(function):
        for name in _CONSTRUCTORS:
            # Dataclasses have an __init__ without source code.
            method = vars(owner).get(name)
            if inspect.isfunction(method) and method.__module__ == owner.__module__:
                yield from _Function(method, function, arguments, depth).checks()


class _Function:
    """A function whose statements are searched for checks."""

    def __init__(
        self, function: Any, owner: type | None, arguments: dict[str, Any], depth: int
    ) -> None:
        """Parses the function.

        Args:
          function: of this project.
          owner: class of `self`, if the function is a method.
          arguments: values of known parameters.
          depth: of calls that are followed.
        """
        self._globals = function.__globals__
        self._owner = owner
        self._depth = depth
        # Values of local names, and the texts of those that depend on settings.
        self._values = _known_defaults(function) | arguments
        self._texts: dict[str, str] = {}
        try:
            self._body = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        except OSError:  # Written by `dataclass`.
            self._body = []

    def checks(self) -> Iterator[tuple[str, str]]:
        """Yields name and text of each check, also of functions that are called."""
        for definition in self._body:
            if isinstance(definition, ast.FunctionDef):
                yield from self._search(definition.body)

    def _search(self, statements: list[ast.stmt]) -> Iterator[tuple[str, str]]:
        for statement in statements:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self._assign(statement.targets[0].id, statement.value)
            elif isinstance(statement, ast.For) and isinstance(statement.target, ast.Name):
                for value in self._evaluate(statement.iter) or ():
                    self._values[statement.target.id] = value
                    yield from self._search(statement.body)
            elif isinstance(statement, ast.If):
                yield from self._search([*statement.body, *statement.orelse])
            elif isinstance(getattr(statement, "value", None), ast.Call):
                yield from self._call(statement.value)

    def _assign(self, name: str, node: ast.expr) -> None:
        value = self._evaluate(node)
        if value is None:
            self._values.pop(name, None)
            self._texts[name] = self._text(node)
        else:
            self._values[name] = value

    def _call(self, call: ast.Call) -> Iterator[tuple[str, str]]:
        called = self._called(call.func)
        if called is check:
            yield self._text(call.args[1]), self._text(call.args[3])
        elif str(getattr(called, "__module__", None)).startswith("jigclu") and self._depth:
            yield from self._follow(called, call)

    def _follow(self, called: Any, call: ast.Call) -> Iterator[tuple[str, str]]:
        is_method = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "self"
        names = list(inspect.signature(called).parameters)[is_method:]
        arguments = dict(zip(names, call.args, strict=False))
        arguments |= {item.arg: item.value for item in call.keywords if item.arg}
        values = {name: self._evaluate(node) for name, node in arguments.items()}
        known = {name: value for name, value in values.items() if value is not None}
        if is_method:
            yield from _Function(called, self._owner, known, self._depth - 1).checks()
        else:
            yield from _of_callable(called, known, self._depth - 1)

    def _called(self, function: ast.expr) -> Any:
        """Returns the function that an expression names, or None."""
        if isinstance(function, ast.Name):
            return self._globals.get(function.id)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            module = self._globals.get(function.value.id)
            owner = self._owner if function.value.id == "self" else module
            return getattr(owner, function.attr, None)
        return None

    def _text(self, node: ast.expr) -> str:
        """Returns the value of an expression as text, or "…" if it depends on settings."""
        if isinstance(node, ast.JoinedStr):
            text = ""
            for part in node.values:
                value = part.value if isinstance(part, ast.FormattedValue) else part
                text = self._append(text, value)
            return text
        if isinstance(node, ast.Name) and node.id in self._texts:
            return self._texts[node.id]
        known = self._evaluate(node)
        return "…" if known is None else str(known)

    def _append(self, text: str, node: ast.expr) -> str:
        """Appends a value to a text: "epochs = " and one that is not known become "epochs"."""
        is_known = self._evaluate(node) is not None
        if text.endswith(" = ") and not is_known:
            return text.removesuffix(" = ")
        return text + self._text(node)

    def _evaluate(self, node: ast.expr) -> Any:
        """Returns the value of an expression, or None if it depends on settings."""
        try:
            return eval(ast.unparse(node), self._globals, dict(self._values))
        except Exception:  # Names that are not known.
            return None


def _known_defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {x.name: x.default for x in parameters if x.default is not x.empty}
