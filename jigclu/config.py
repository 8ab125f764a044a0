"""gin: the names that files may bind, and the checks that make every binding count.

Only this module and `launch` know gin. Each configurable turns its bindings
into plain arguments of code that does not.
"""

import collections.abc
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gin

from jigclu import schedules, update
from jigclu.augment import AugmentationSettings
from jigclu.data.procedural import ProceduralImages
from jigclu.data.sources import ImageFolder, ImageList, TorchvisionImages, UnlabelledImages
from jigclu.errors import UserError
from jigclu.knn import KnnEvaluation
from jigclu.pretrain import PretrainTask

ROOT = Path(__file__).resolve().parents[1]
_MACRO = re.compile(r"%(\w+)")


class Task(Protocol):
    """What `launch.task` is bound to: something that can be checked, planned and run."""

    def check(self, workdir: Path, config: str) -> None: ...

    def plan(self) -> str: ...

    def run(self, workdir: Path, config: str) -> None: ...


class Configuration(NamedTuple):
    """What gin files and command-line bindings came to.

    task: ready to run.
    given: all bindings, in gin's syntax.
    operative: all that took effect, in gin's syntax.
    resolved: the same, one `name = value` a line, macros replaced by their values.
    unused: bindings of files that a command-line binding put out of effect.
    """

    task: Task
    given: str
    operative: str
    resolved: str
    unused: list[str]


def sgd(momentum: float, weight_decay: float) -> update.Optimizer:
    """SGD with momentum; see `update.sgd`."""
    update.check_optimizer(momentum, weight_decay)
    return functools.partial(update.sgd, momentum=momentum, weight_decay=weight_decay)


def lars(momentum: float, weight_decay: float, trust_coefficient: float) -> update.Optimizer:
    """LARS; see `update.lars`."""
    update.check_optimizer(momentum, weight_decay)
    return functools.partial(
        update.lars,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
    )


def cosine() -> schedules.Decay:
    """Half a cosine; see `schedules.cosine_decay`."""
    return schedules.cosine_decay


def steps(milestones: Sequence[float], factor: float) -> schedules.Decay:
    """Steps at epochs; see `schedules.step_decay`."""
    return functools.partial(schedules.step_decay, milestones=tuple(milestones), factor=factor)


def launch(task: Task) -> Task:
    """The root of every configuration."""
    return task


CONFIGURABLES: dict[str, Callable[..., Any]] = {
    "launch": launch,
    "train": PretrainTask,
    "knn": KnnEvaluation,
    "augmentation": AugmentationSettings,
    "loss_scaling": update.LossScaling,
    "sgd": sgd,
    "lars": lars,
    "cosine": cosine,
    "steps": steps,
    "ImageFolder": ImageFolder,
    "UnlabelledImages": UnlabelledImages,
    "ImageList": ImageList,
    "TorchvisionImages": TorchvisionImages,
    "ProceduralImages": ProceduralImages,
}


def _register() -> None:
    gin.add_config_file_search_path(str(ROOT))
    for name, function in CONFIGURABLES.items():
        gin.external_configurable(_checked(name, function), name=name)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a configurable: it says by name which binding is absent or of the wrong type."""
    signature = inspect.signature(function)
    hints = _hints(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        absent = [
            f"{name}.{parameter.name}"
            for parameter in signature.parameters.values()
            if parameter.name not in given and parameter.default is parameter.empty
        ]
        if absent:
            raise UserError(f"{', '.join(absent)} not bound: include a base file, or bind it")
        for parameter, value in given.items():
            if not _fits(value, hints[parameter]):
                raise UserError(
                    f"{name}.{parameter} is {value!r}, of type {type(value).__name__}; "
                    f"expected {_describe(hints[parameter])}"
                )
        return function(*args, **kwargs)

    # gin reads names and parameters off what it registers.
    call.__name__ = call.__qualname__ = name
    call.__module__ = "jigclu"
    call.__doc__ = function.__doc__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(function, type) and "__annotations__" not in vars(function):
        return typing.get_type_hints(function.__init__)
    return typing.get_type_hints(function)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value is of a hinted type; an int is a float, a list a tuple."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in parameters)
    if origin in (tuple, collections.abc.Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and parameters[-1] is not Ellipsis:
            return len(value) == len(parameters) and all(map(_fits, value, parameters))
        return all(_fits(item, parameters[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False):
        return _fits_protocol(value, hint)
    return isinstance(value, hint)


def _fits_protocol(value: Any, protocol: Any) -> bool:
    wanted = {name for name in vars(protocol) if inspect.isfunction(vars(protocol)[name])}
    wanted -= {"__init__", "__subclasshook__"}
    if inspect.isclass(value) or not all(hasattr(value, name) for name in wanted):
        return False
    if wanted != {"__call__"}:
        return True
    # Two rules of the same kind differ in what they take.
    names = set(inspect.signature(protocol.__call__).parameters) - {"self"}
    return names <= set(inspect.signature(value).parameters)


def _describe(hint: Any) -> str:
    if getattr(hint, "_is_protocol", False) or hint in CONFIGURABLES.values():
        makers = [name for name, maker in CONFIGURABLES.items() if _makes(maker, hint)]
        return "one of " + ", ".join(f"@{name}()" for name in makers)
    options = [_describe(option) for option in typing.get_args(hint)]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join("None" if option == "NoneType" else option for option in options)
    return hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("collections.abc.")


def _makes(maker: Callable[..., Any], hint: Any) -> bool:
    if not isinstance(maker, type):
        return typing.get_type_hints(maker).get("return") is hint
    return maker is hint or (getattr(hint, "_is_protocol", False) and _has_methods(maker, hint))


def _has_methods(maker: type, protocol: Any) -> bool:
    wanted = {name for name in vars(protocol) if inspect.isfunction(vars(protocol)[name])}
    return all(hasattr(maker, name) for name in wanted - {"__init__", "__subclasshook__"})


def load(files: Sequence[str], bindings: Sequence[str]) -> Configuration:
    """Reads gin files, then command-line bindings over them, and builds the task.

    Args:
      files: paths, from the working directory or the root of the project.
      bindings: such as "train.batch_size=512".

    Raises:
      UserError: a mistake in a file or a binding, a binding of an unknown name or
        of a wrong type, or one that never takes effect.
    """
    gin.clear_config()
    try:
        for file in files:
            gin.parse_config_file(file)
        in_files = _bindings(gin.config_str(max_line_length=_LONG))
        gin.parse_config(list(bindings))
        task = gin.get_configurable("launch")()
    except UserError as error:
        # gin appends the call chain; the first line is ours.
        raise UserError(_first_line(error)) from error
    except (ValueError, TypeError, SyntaxError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(_explain(error)) from error
    given = _bindings(gin.config_str(max_line_length=_LONG))
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    unused = [name for name in given if not _took_effect(name, given, operative)]
    _refuse_unused(unused, in_files, given)
    return Configuration(
        task=task,
        given=gin.config_str(),
        operative=gin.operative_config_str(),
        resolved=_resolve(operative),
        unused=unused,
    )


_LONG = 10**6  # One binding a line, however long.


def _bindings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "import "))]
    return dict(line.split(" = ", 1) for line in lines)


def _took_effect(name: str, given: Mapping[str, str], operative: Mapping[str, str]) -> bool:
    """A binding may take effect within a scope: a.b also as scope/a.b."""
    return any(
        other == name or other.endswith(f"/{name}")
        for other, value in operative.items()
        if value == given[name]
    )


def _refuse_unused(unused: Sequence[str], in_files: Mapping[str, str], given: Mapping[str, str]):
    # Another source or optimizer on the command line leaves the file's idle: no mistake.
    replaced = any("@" in value and given[name] != value for name, value in in_files.items())
    for name in unused:
        from_file = in_files.get(name) == given[name]
        if not (from_file and replaced):
            raise UserError(
                f"{name} = {given[name]} never takes effect: nothing that runs reads it; "
                f"remove it{_hint(name, _used_names())}"
            )


def _used_names() -> list[str]:
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    return [name for name in operative if "." in name]


def _known_names() -> list[str]:
    return [
        f"{name}.{parameter}"
        for name, function in CONFIGURABLES.items()
        for parameter in inspect.signature(function).parameters
    ]


def _resolve(operative: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        return _MACRO.sub(value_of, operative[match[1]])

    return "\n".join(
        f"{name} = {_MACRO.sub(value_of, value)}"
        for name, value in sorted(operative.items())
        if "." in name
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _explain(error: BaseException) -> str:
    """Returns gin's complaint as one line, with the nearest name that would be valid."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines) or type(error).__name__
    unknown = re.search(r"No configurable matching '([^']+)'", message)
    parameter = re.search(r"'([^']+)'.* doesn't have a parameter named '([^']+)'", message)
    if parameter is None:
        parameter = re.search(r"No argument named '([^']+)'", message)
    if unknown:
        return message + _hint(unknown[1], [*CONFIGURABLES, *_known_names()])
    return message + (_hint(".".join(parameter.groups()), _known_names()) if parameter else "")


def _hint(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


_register()
