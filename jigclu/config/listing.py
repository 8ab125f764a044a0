"""Lists what can be run: the tasks and the project's own gin files."""

import inspect
import typing

from jigclu.config import gin_files
from jigclu.config.registry import CONFIGURABLES
from jigclu.tasks.stages import Task


def runnable() -> str:
    """Returns a list of all tasks and run files, each with its description."""
    tasks = {
        name: _description(function)
        for name, function in CONFIGURABLES.items()
        if _is_task(function)
    }
    files = {
        file: gin_files.first_comment(file)
        for file in gin_files.shipped_files()
        if not file.startswith("gin/base/")
    }
    return (
        f"Tasks, one of which a gin file binds as launch.task = @name():\n{_table(tasks)}\n"
        f"Files; gin/base/ has what they share:\n{_table(files)}\n"
        "Example: python -m jigclu.launch --gin_file=gin/demo.gin "
        "--gin_bindings=pretrain.batch_size=64"
    )


def _is_task(function: typing.Any) -> bool:
    made = function if inspect.isclass(function) else typing.get_type_hints(function)["return"]
    return made is not Task and all(hasattr(made, name) for name in ("check", "plan", "run"))


def _description(function: typing.Any) -> str:
    made = function if inspect.isclass(function) else typing.get_type_hints(function)["return"]
    document = inspect.getdoc(inspect.getmodule(made)) or ""
    return document.splitlines()[0]


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "".join(f"  {name:{width}}  {text}\n" for name, text in rows.items())
