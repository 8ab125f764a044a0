"""Names that gin files can bind, with checks of each binding's type and value."""

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import gin

from jigclu.config import gin_files, messages, syntax, types
from jigclu.data.decode import Decoding
from jigclu.data.folders import ImageFolder, UnlabeledImages, open_folder
from jigclu.data.hugging_face import HuggingFaceImages
from jigclu.data.lists import ImageList
from jigclu.data.packed import PackedImages
from jigclu.data.procedural import ProceduralImages
from jigclu.data.segmentation import SegmentationFolders, VocSegmentation
from jigclu.data.subsets import BalancedSubset, HeldOut, ListedSubset
from jigclu.data.torchvision_images import TorchvisionImages
from jigclu.data.transform import EvalTransform
from jigclu.data.webdataset import WebDatasetImages
from jigclu.methods.byol import Byol
from jigclu.methods.jigsaw import Jigsaw
from jigclu.methods.moco import Moco
from jigclu.methods.simclr import SimClr
from jigclu.methods.simsiam import SimSiam
from jigclu.ops import optim, schedules
from jigclu.ops.augment import ColorAugmentation
from jigclu.system.errors import UserError
from jigclu.tasks.benchmark.task import BenchmarkTask
from jigclu.tasks.compare import CompareTask
from jigclu.tasks.export import ExportTask
from jigclu.tasks.feature_cache import FeatureCache
from jigclu.tasks.features import FeaturesTask
from jigclu.tasks.finetune import FinetuneTask
from jigclu.tasks.knn import KnnTask
from jigclu.tasks.linear import LinearTask
from jigclu.tasks.pack import PackTask
from jigclu.tasks.pretrain import PretrainTask
from jigclu.tasks.report import ReportTask
from jigclu.tasks.reproduce import ReproduceTask
from jigclu.tasks.segment import SegmentTask
from jigclu.tasks.stages import Load, Task
from jigclu.training.knn_evaluator import KnnEvaluator
from jigclu.training.online_probe import OnlineProbe
from jigclu.training.probe_evaluator import ProbeEvaluator
from jigclu.training.settings import Compute, Loading, Reporting, Saving, Schedule


def launch(task: Task) -> Task:
    """Returns the task to run: the root of every configuration.

    Args:
      task: what the command runs, such as `@pretrain()`.
    """
    return task


def reproduce(
    stages: Sequence[tuple[str, str, tuple[str, ...]]],
    data: str | None,
    size: int | None,
    published: Sequence[tuple[str, str, float]],
) -> ReproduceTask:
    """Returns a task of several stages, each with its own gin file; see `ReproduceTask`."""
    return ReproduceTask(stages=stages, data=data, size=size, published=published, load=_loader[0])


def compare(
    methods: Sequence[tuple[str, str, tuple[str, ...], Sequence[tuple[str, ...]]]],
    reference: str,
    epochs: float,
    budgets: tuple[str, ...],
    trial_share: float,
    trial_bindings: tuple[str, ...],
    seeds: tuple[int, ...],
    data: str | None,
    scorings: Sequence[tuple[str, str, str, str | None, tuple[str, ...]]],
) -> CompareTask:
    """Returns a comparison of methods; see `CompareTask`."""
    return CompareTask(**locals(), load=_loader[0])


# Loads the gin file of a stage. `load_stages_by` sets it, because `load` imports this module.
_loader: list[Load] = []

CONFIGURABLES: dict[str, Callable[..., Any]] = {
    "launch": launch,
    # Tasks.
    "pretrain": PretrainTask,
    "linear": LinearTask,
    "finetune": FinetuneTask,
    "segment": SegmentTask,
    "knn": KnnTask,
    "features": FeaturesTask,
    "export": ExportTask,
    "pack": PackTask,
    "report": ReportTask,
    "benchmark": BenchmarkTask,
    "reproduce": reproduce,
    "compare": compare,
    # Groups of settings.
    "compute": Compute,
    "loading": Loading,
    "schedule": Schedule,
    "saving": Saving,
    "reporting": Reporting,
    "eval_transform": EvalTransform,
    # Methods and evaluators.
    "jigsaw": Jigsaw,
    "simclr": SimClr,
    "moco": Moco,
    "simsiam": SimSiam,
    "byol": Byol,
    "augmentation": ColorAugmentation,
    "knn_evaluator": KnnEvaluator,
    "probe_evaluator": ProbeEvaluator,
    "online_probe": OnlineProbe,
    "feature_cache": FeatureCache,
    # Optimization.
    "sgd": optim.SGD,
    "lars": optim.LARS,
    "adamw": optim.AdamW,
    "loss_scaling": optim.LossScaling,
    "cosine_decay": schedules.CosineDecay,
    "step_decay": schedules.StepDecay,
    # Images.
    "decoding": Decoding,
    "ImageFolder": ImageFolder,
    "UnlabeledImages": UnlabeledImages,
    "open_folder": open_folder,
    "ImageList": ImageList,
    "TorchvisionImages": TorchvisionImages,
    "HuggingFaceImages": HuggingFaceImages,
    "PackedImages": PackedImages,
    "WebDatasetImages": WebDatasetImages,
    "ProceduralImages": ProceduralImages,
    "VocSegmentation": VocSegmentation,
    "SegmentationFolders": SegmentationFolders,
    "ListedSubset": ListedSubset,
    "BalancedSubset": BalancedSubset,
    "HeldOut": HeldOut,
}
# A field within a sentence: no part of a binding, a path or a quoted value.
_FIELD = re.compile(r"(?<![\w./'-])[a-z]+(?:_[a-z]+)+(?![\w./'=-])")
_NAMES = {function: name for name, function in CONFIGURABLES.items()}


def load_stages_by(load: Load) -> None:
    """Sets the function that reads the gin files of a stage."""
    _loader[:] = [load]


def register() -> None:
    """Registers all configurables with gin."""
    for name, function in CONFIGURABLES.items():
        gin.external_configurable(_add_checks(name, function), name=name)


def binding_names() -> list[str]:
    """Returns the names of all bindings, such as schedule.epochs."""
    return [
        f"{name}.{parameter}"
        for name, function in CONFIGURABLES.items()
        for parameter in inspect.signature(function).parameters
    ]


def check_type(binding: str, value: Any) -> None:
    """Raises UserError unless the value of a binding has the type of the parameter."""
    name, _, parameter = binding.rpartition("/")[2].partition(".")
    expected = types.parameter_hints(CONFIGURABLES[name])[parameter]
    if not types.fits(value, expected):
        raise UserError(
            f"{binding} is {_spell(value)}; expected {spell_expected(expected)}"
            f"{_correction(binding, expected)}"
        )


def name_setting(message: str, owner: Any) -> str:
    """Replaces fields in an error message by their bindings.

    These are the field at the start, and further words with an underscore that are fields, such
    as init_from in "bind init_from to this file".

    Args:
      message: starts with a field of the owner or of an object in it, or with a path of
        fields: "epochs is 0; …", "init_from: …" or "schedule.epochs was 1 and is 2; …".
      owner: a task, or another configurable.
    """
    word, space, rest = message.partition(" ")
    rest = _FIELD.sub(lambda match: _binding(match[0], owner), rest)
    return f"{_binding(word, owner)}{space}{rest}"


def _binding(word: str, owner: Any) -> str:
    """Returns the binding of a field, or path of fields, in an owner; other words as they are."""
    *path, field = word.split(".")
    found = messages.find_owner(owner, path, field.removesuffix(":"))
    name = _NAMES.get(type(found))
    return f"{name}.{field}" if name else word


def _add_checks(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a configurable so that errors name the binding as the user wrote it."""
    signature = inspect.signature(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        missing = [
            f"{name}.{parameter.name}"
            for parameter in signature.parameters.values()
            if parameter.name not in given and parameter.default is parameter.empty
        ]
        if missing:
            raise UserError(_describe_missing(name, missing))
        for parameter, value in given.items():
            check_type(_as_written(name, parameter), value)
        try:
            return function(*args, **kwargs)
        except UserError as error:
            word, space, rest = str(error).partition(" ")
            parameter = word.removesuffix(":")
            if parameter not in signature.parameters:
                raise
            colon = word.removeprefix(parameter)
            raise UserError(f"{_as_written(name, parameter)}{colon}{space}{rest}") from error

    # gin inspects the name, module and signature of the functions it registers.
    call.__name__ = call.__qualname__ = name
    call.__module__ = "jigclu"
    call.__doc__ = function.__doc__
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _describe_missing(name: str, missing: Sequence[str]) -> str:
    """Returns the message about bindings that a configurable lacks."""
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    message = f"not bound: {', '.join(missing[:3])}{more}"
    scoped = re.search(rf"^(\S+)/{re.escape(missing[0])} = ", gin.config_str(), re.MULTILINE)
    if scoped:
        return (
            f"{message}; bind it, or refer to @{scoped[1]}/{name}(), for which "
            f"{scoped[1]}/{missing[0]} is bound"
        )
    own, found = f"gin/base/{name}.gin", gin_files.files_that_bind(missing[0])
    if not found:
        return f"{message}; bind every value in a gin file or with --gin_bindings"
    usual = own if own in found else found[0] if len(found) == 1 else "gin/base"
    return (
        f"{message}; bind every value in a gin file ({usual} has the usual values) or with "
        "--gin_bindings"
    )


def _correction(binding: str, hint: Any) -> str:
    """Returns "; write …" with a value of the hinted type, if a common mistake explains it."""
    for value in syntax.similar_values(repr(gin.query_parameter(binding)), CONFIGURABLES):
        if _makes(value, hint):
            return f"; write {binding} = {value}"
    return ""


def _makes(value: str, hint: Any) -> bool:
    """Returns whether a value, as gin prints it, is of a hinted type."""
    reference = re.fullmatch(r"(\(?)@(?:\w+/)*(\w+)\(\)(?:,\))?", value)
    if reference:
        function = CONFIGURABLES.get(reference[2])
        is_sequence = bool(reference[1])
        return (
            function is not None
            and is_sequence == types.is_sequence(hint)
            and any(types.makes(function, option) for option in types.options(hint))
        )
    try:
        return types.fits(ast.literal_eval(value), hint)
    except (ValueError, SyntaxError):
        return False


def _as_written(name: str, parameter: str) -> str:
    """Returns the name of a binding, with the scope in which it is bound, if any."""
    for scope in reversed(gin.current_scope()):
        scoped = f"{scope}/{name}.{parameter}"
        with suppress(ValueError):  # It is not bound.
            gin.query_parameter(scoped)
            return scoped
    return f"{name}.{parameter}"


def _spell(value: Any) -> str:
    """Describes a value with its type, or an object by the reference that built it."""
    if _is_plain(value):
        return f"{value!r}, of type {type(value).__name__}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_spell, value))})"
    if inspect.isfunction(value):
        return f"@{value.__name__} without parentheses"
    return f"a reference to {_NAMES.get(type(value), type(value).__name__)}"


def _is_plain(value: Any) -> bool:
    """Returns whether a value consists of Python's literals."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, dict)


def spell_expected(hint: Any) -> str:
    """Describes the valid values of a type: its name, or the references that build one."""
    options = types.options(hint)
    makers = [
        f"@{name}()"
        for name, function in CONFIGURABLES.items()
        if any(types.makes(function, option) for option in options)
    ]
    if not makers:
        return types.spell(hint)
    listed = ", ".join(makers + ["None"] * (type(None) in options))
    return f"a tuple of {listed}" if types.is_sequence(hint) else f"one of {listed}"
