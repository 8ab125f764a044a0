"""gin: the names that files may bind, and the checks that make every binding count.

Only this module and `launch` know gin. Each configurable turns its bindings
into plain arguments of code that does not.
"""

import difflib
import inspect
import logging
import re
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gin

from jigclu.config import types
from jigclu.data.packed import PackedImages
from jigclu.data.procedural import ProceduralImages
from jigclu.data.sources import ImageFolder, ImageList, TorchvisionImages, UnlabeledImages
from jigclu.data.subsets import BalancedSubset, HeldOut, ListedSubset
from jigclu.data.webdataset import WebDatasetImages
from jigclu.ops import optim, schedules
from jigclu.ops.augment import AugmentationSettings
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.task import BenchmarkTask
from jigclu.tasks.export import ExportTask
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.knn import KnnTask
from jigclu.tasks.linear import LinearTask
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.reproduce import ReproduceTask, Task
from jigclu.training.knn_evaluator import KnnEvaluation

_LONG = 10**6  # Characters: one binding a line, however long.
_GIN_ERRORS = (
    *(ValueError, TypeError, SyntaxError, OSError, RuntimeError, AttributeError, ImportError),
    tokenize.TokenError,
)
_PACKAGE = Path(__file__).resolve().parents[1]
# The folder that holds gin/: the package in a wheel (setup.cfg puts it there), else the checkout.
ROOT = _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent
# Where a gin file is looked up after the working directory, with and without "gin/" in its name.
_SEARCH_PATHS = (ROOT, ROOT / "gin")
_MACRO = re.compile(r"%(\w+)")


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


def launch(task: Task) -> Task:
    """The root of every configuration."""
    return task


def reproduce(
    stages: Sequence[tuple[str, str, tuple[str, ...]]],
    published: Sequence[tuple[str, str, float]],
) -> ReproduceTask:
    """Stages from gin files; see `ReproduceTask`."""

    def load_stage(files: Sequence[str], bindings: Sequence[str]) -> tuple[Task, str]:
        configuration = load(files, bindings)
        return configuration.task, configuration.resolved

    return ReproduceTask(stages=stages, published=published, load=load_stage)


CONFIGURABLES: dict[str, Callable[..., Any]] = {
    "launch": launch,
    "reproduce": reproduce,
    "train": PretrainTask,
    "finetune": FinetuneTask,
    "linear": LinearTask,
    "cache": FeatureCache,
    "knn": KnnEvaluation,
    "knn_task": KnnTask,
    "export": ExportTask,
    "pack": PackTask,
    "benchmark": BenchmarkTask,
    "augmentation": AugmentationSettings,
    "loss_scaling": optim.LossScaling,
    "sgd": optim.SGD,
    "lars": optim.LARS,
    "cosine_decay": schedules.CosineDecay,
    "step_decay": schedules.StepDecay,
    "ImageFolder": ImageFolder,
    "UnlabeledImages": UnlabeledImages,
    "ImageList": ImageList,
    "TorchvisionImages": TorchvisionImages,
    "PackedImages": PackedImages,
    "WebDatasetImages": WebDatasetImages,
    "ProceduralImages": ProceduralImages,
    "ListedSubset": ListedSubset,
    "BalancedSubset": BalancedSubset,
    "HeldOut": HeldOut,
}


def _register() -> None:
    for folder in _SEARCH_PATHS:
        gin.add_config_file_search_path(str(folder))
    for name, function in CONFIGURABLES.items():
        gin.external_configurable(_checked(name, function), name=name)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a configurable: it says by name which binding is absent or of the wrong type."""
    signature = inspect.signature(function)
    expected = types.parameter_hints(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        absent = [
            f"{name}.{parameter.name}"
            for parameter in signature.parameters.values()
            if parameter.name not in given and parameter.default is parameter.empty
        ]
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise UserError(
                f"not bound: {', '.join(absent[:3])}{more}; every value must be, "
                "in a gin file (those of gin/base state the usual ones) or by --gin_bindings"
            )
        for parameter, value in given.items():
            if not types.fits(value, expected[parameter]):
                raise UserError(
                    f"{name}.{parameter} is {_spell(value)}; "
                    f"expected {_expected(expected[parameter])}"
                )
        try:
            return function(*args, **kwargs)
        except UserError as error:
            # A check of a value begins with the name of its field; the user knows the binding.
            is_of_field = str(error).split(" ")[0] in signature.parameters
            raise UserError(f"{name}.{error}" if is_of_field else str(error)) from error

    # gin reads names and parameters off what it registers.
    call.__name__ = call.__qualname__ = name
    call.__module__ = "jigclu"
    call.__doc__ = function.__doc__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _spell(value: Any) -> str:
    """Returns a value as people write it; what a reference made, by its name."""
    if value is None or type(value) in (bool, int, float, str, tuple, list, dict):
        return f"{value!r}, of type {type(value).__name__}"
    names = {function: name for name, function in CONFIGURABLES.items()}
    made = type(value)
    return f"a reference to {getattr(value, '__name__', names.get(made, made.__name__))}"


def _expected(hint: Any) -> str:
    """Returns what a binding of this hint may be: a type, or the references that make one."""
    options = typing.get_args(hint) if types.spell(hint).endswith(" or None") else (hint,)
    makers = [
        f"@{name}()"
        for name, function in CONFIGURABLES.items()
        if any(_makes(function, option) for option in options)
    ]
    if not makers:
        return types.spell(hint)
    return "one of " + ", ".join(makers + ["None"] * (type(None) in options))


def _makes(function: Callable[..., Any], hint: Any) -> bool:
    if not isinstance(function, type):
        return types.parameter_hints(function).get("return") is hint
    if types.is_protocol(hint):
        # Instances are called, so that their `__call__` is what has the arguments.
        made: Any = function.__call__ if types.is_callable(hint) else function
        return types.fits_protocol(made, hint)
    return function is hint


def load(files: Sequence[str], bindings: Sequence[str]) -> Configuration:
    """Reads gin files, then command-line bindings over them, and builds the task.

    Args:
      files: paths from the working directory, or names of the project's own files:
        gin/demo.gin or demo.gin.
      bindings: such as "train.batch_size=512".

    Raises:
      UserError: a mistake in a file or a binding, a binding of an unknown name or
        of a wrong type, or one that never takes effect.
    """
    gin.clear_config()
    for file in files:
        with _one_line_errors(file):
            gin.parse_config_file(_found(file))
    in_files = _bindings(gin.config_str(max_line_length=_LONG))
    for binding in bindings:
        with _one_line_errors(f"--gin_bindings={binding!r}"):
            gin.parse_config(binding)
    with _one_line_errors("configuration"):
        task = gin.get_configurable("launch")()
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


def _refuse_unused(
    unused: Sequence[str], in_files: Mapping[str, str], given: Mapping[str, str]
) -> None:
    # Another source, optimizer or macro on the command line leaves the file's idle: no mistake.
    replaced = any(
        ("@" in value or "%" in value) and given[name] != value for name, value in in_files.items()
    )
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


@contextmanager
def _one_line_errors(where: str) -> Iterator[None]:
    """Turns what gin raises within a block into one line, with the nearest valid name."""
    # gin logs each place where it looked for an included file, then raises.
    logging.disable()
    try:
        yield
    except UserError as error:
        # gin appends the chain of calls; the first line is ours.
        raise UserError(str(error).strip().splitlines()[0]) from error
    except _GIN_ERRORS as error:
        raise UserError(f"{where}: {_explain(error)}") from error
    finally:
        logging.disable(logging.NOTSET)


def _explain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "a reference or macro leads back to itself"
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip(" ^"))
    # A binding of the command line stands in the message already.
    message = re.sub(r" In bindings string line \d.*", "", message)
    macro = re.search(r"configurable 'macro' .* in scope '(.+)'", message)
    if macro:
        return f"%{macro[1]} is read and not bound; bind it as {macro[1]} = …"
    word = re.search(r"Failed to parse token '([^']*)'", message)
    if word:
        return f"cannot read the value {word[1]}; text stands in quotes: '{word[1]}'"
    unknown = re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message)
    if unknown:
        return message + _hint(unknown[1], [*CONFIGURABLES, *_known_names()])
    parameter = re.search(r"'([^']+)' doesn't have a parameter named '([^']+)'", message)
    return message + (_hint(".".join(parameter.groups()), _known_names()) if parameter else "")


def _found(file: str) -> str:
    """Returns the path of a gin file of the working directory or, next, of the project."""
    for path in (Path(file), *(folder / file for folder in _SEARCH_PATHS)):
        if path.is_file():
            return str(path)
    near = _hint(file, [str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin")])
    raise UserError(f"gin file {file} does not exist{near}")


def _hint(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


_register()
