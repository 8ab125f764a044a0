"""Reads gin files and bindings into one task, and rejects bindings without effect."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gin
from absl import logging

from jigclu.config import messages
from jigclu.config.registry import CONFIGURABLES, binding_names, name_setting, register
from jigclu.system import progress
from jigclu.system.device import launched_rank
from jigclu.system.errors import UserError
from jigclu.system.files import write_file
from jigclu.tasks.reproduce import Task
from jigclu.training.loop import RunResult

_LONG = 10**6  # Characters, so that every binding stays on one line.
_PACKAGE = Path(__file__).resolve().parents[1]
# The folder that holds gin/: the package in a wheel (setup.cfg puts it there), else the checkout.
ROOT = _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent
# Where a gin file is looked up after the working directory, with and without "gin/" in its name.
_SEARCH_PATHS = (ROOT, ROOT / "gin")
_MACRO = re.compile(r"%(\w+)")


class Configuration(NamedTuple):
    """Result of reading gin files and command-line bindings.

    task: ready to run.
    given: all bindings, in gin's syntax.
    operative: all bindings that took effect, in gin's syntax.
    resolved: the same, as one `name = value` per line, macros replaced by their values.
    unused: names bound in files that have no effect because of a command-line binding.
    """

    task: Task
    given: str
    operative: str
    resolved: str
    unused: list[str]

    def check(self, workdir: Path) -> None:
        """Checks the task, before anything is written; see `TrainingTask.check`."""
        with _named_bindings(self.task), progress.status("checking the configuration"):
            self.task.check(workdir)

    def run(self, workdir: Path) -> RunResult:
        """Writes the configuration to the workdir, then runs the task; call `check` before."""
        if launched_rank() == 0:
            write_file(workdir / "config.gin", self.given.encode())
            write_file(workdir / "operative_config.gin", self.operative.encode())
            if self.unused:
                logging.warning(
                    "the command line replaced what these bindings of files configure: %s",
                    ", ".join(self.unused),
                )
            logging.info("workdir %s\n%s", workdir, self.task.plan(workdir))
        with _named_bindings(self.task):
            return self.task.run(workdir, self.resolved)


@contextmanager
def _named_bindings(task: Task) -> Iterator[None]:
    """Makes user errors of a task name the binding as the user writes it."""
    try:
        yield
    except UserError as error:
        raise UserError(name_setting(str(error), task)) from error


def default_workdir(files: Sequence[str]) -> Path:
    """Returns runs/<name of the last gin file>."""
    return Path("runs") / Path(files[-1]).stem


def load(files: Sequence[str], bindings: Sequence[str]) -> Configuration:
    """Reads gin files, then command-line bindings over them, and builds the task.

    Args:
      files: paths from the working directory, or names of the project's own files:
        gin/demo.gin or demo.gin.
      bindings: such as "pretrain.batch_size=512".

    Raises:
      UserError: a file or a binding cannot be read, names something unknown, has an invalid
        value, or never takes effect.
    """
    valid = [*CONFIGURABLES, *binding_names()]
    gin.clear_config()
    for file in files:
        with messages.one_line_errors(file, valid):
            gin.parse_config_file(_find(file))
    in_files = _bindings(gin.config_str(max_line_length=_LONG))
    for binding in bindings:
        with messages.one_line_errors(f"--gin_bindings={binding!r}", valid):
            gin.parse_config(binding)
    with messages.one_line_errors("configuration", valid), progress.status("opening the data"):
        task = gin.get_configurable("launch")()
    given = _bindings(gin.config_str(max_line_length=_LONG))
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    unused = [name for name in given if not _took_effect(name, given, operative)]
    _reject_unused(unused, in_files, given)
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
    """Returns whether a binding took effect: a.b as itself, or in a scope as scope/a.b."""
    return any(
        other == name or other.endswith(f"/{name}")
        for other, value in operative.items()
        if value == given[name]
    )


def _reject_unused(
    unused: Sequence[str], in_files: Mapping[str, str], given: Mapping[str, str]
) -> None:
    # A command-line binding may replace a source, optimizer or macro of a file. Bindings of the
    # replaced object then have no effect, which is not an error.
    replaced = any(
        ("@" in value or "%" in value) and given[name] != value for name, value in in_files.items()
    )
    for name in unused:
        from_file = in_files.get(name) == given[name]
        if not (from_file and replaced):
            raise UserError(
                f"{name} = {given[name]} never takes effect, because nothing that runs reads it; "
                f"remove it{messages.hint(name, _used_names())}"
            )


def _used_names() -> list[str]:
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    return [name for name in operative if "." in name]


def _resolve(operative: Mapping[str, str]) -> str:
    def expand(match: re.Match[str]) -> str:
        return _MACRO.sub(expand, operative[match[1]])

    return "\n".join(
        f"{name} = {_MACRO.sub(expand, value)}"
        for name, value in sorted(operative.items())
        if "." in name
    )


def _find(file: str) -> str:
    """Returns the path of a gin file in the working directory, or else in the project."""
    for path in (Path(file), *(folder / file for folder in _SEARCH_PATHS)):
        if path.is_file():
            return str(path)
    own = [str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin")]
    raise UserError(f"gin file {file} does not exist{messages.hint(file, own)}")


for folder in _SEARCH_PATHS:
    gin.add_config_file_search_path(str(folder))
register(load)
