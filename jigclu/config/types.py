"""Checks values written by users against type hints."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any


def parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the type hints of the arguments of a function, dataclass or class, by name."""
    if isinstance(function, type) and "__annotations__" not in vars(function):
        return typing.get_type_hints(vars(function)["__init__"])
    return typing.get_type_hints(function)


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a value has a hinted type.

    An int is valid for float and a list for tuple; a bool is valid for neither int nor float.
    For a protocol a value must have its methods, and for a callable protocol its parameters.
    """
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in parameters)
    if origin is typing.Literal:
        return value in parameters
    if origin in (tuple, collections.abc.Sequence):
        return _fits_sequence(value, parameters)
    if hint in (int, float):
        kinds = (int, float) if hint is float else (int,)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if is_protocol(hint):
        return not inspect.isclass(value) and fits_protocol(value, hint)
    return isinstance(value, hint)


def _fits_sequence(value: Any, parameters: tuple[Any, ...]) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if len(parameters) > 1 and parameters[-1] is not Ellipsis:
        return len(value) == len(parameters) and all(map(fits, value, parameters))
    return all(fits(item, parameters[0]) for item in value)


def is_protocol(hint: Any) -> bool:
    """Returns whether a hint is a typing.Protocol."""
    return getattr(hint, "_is_protocol", False)


def is_callable(protocol: Any) -> bool:
    """Returns whether a protocol describes functions."""
    return "__call__" in vars(protocol)


def fits_protocol(value: Any, protocol: Any) -> bool:
    """Returns whether a value has a protocol's methods and, if it is callable, parameters."""
    if not has_methods(value, protocol):
        return False
    if not is_callable(protocol):
        return True
    return _same_parameters(value, protocol)


def _same_parameters(function: Callable[..., Any], protocol: Any) -> bool:
    # Callable protocols differ only in their parameters.
    names = set(inspect.signature(protocol.__call__).parameters) - {"self"}
    return names <= set(inspect.signature(function).parameters)


def has_methods(value: Any, protocol: Any) -> bool:
    """Returns whether a value, or the instances of a class, have a protocol's methods."""
    methods = [name for name, member in vars(protocol).items() if inspect.isfunction(member)]
    return all(
        hasattr(value, name) for name in methods if name not in ("__init__", "__subclasshook__")
    )


def spell(hint: Any) -> str:
    """Returns a hint as users write it: int, tuple[float, float], str or None."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(spell(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return hint.__name__
    return str(hint).replace("collections.abc.", "")


def options(hint: Any) -> tuple[Any, ...]:
    """Returns the alternatives of a hint, or those of the items of a sequence."""
    if is_sequence(hint):
        return options(typing.get_args(hint)[0])
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def is_sequence(hint: Any) -> bool:
    """Returns whether a hint is a sequence of any number of items of one type."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    return origin is collections.abc.Sequence or (origin is tuple and parameters[1:] == (...,))


def makes(function: Callable[..., Any], hint: Any) -> bool:
    """Returns whether a class or function returns values of a hinted type."""
    made = function if isinstance(function, type) else parameter_hints(function).get("return")
    if is_protocol(hint):
        return isinstance(made, type) and not is_protocol(made) and _fits_protocol_class(made, hint)
    return made is hint


def _fits_protocol_class(made: type, protocol: Any) -> bool:
    if not has_methods(made, protocol):
        return False
    return not is_callable(protocol) or _same_parameters(made.__call__, protocol)
