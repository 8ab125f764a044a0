"""Reads gin files and bindings into one task, and rejects bindings without effect."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gin

from jigclu.config import chosen, gin_files, messages, sizes
from jigclu.config.chosen import Chosen
from jigclu.config.gin_files import Layer
from jigclu.config.registry import (
    CONFIGURABLES,
    binding_names,
    load_stages_by,
    name_setting,
    register,
)
from jigclu.data.sources import find_notes
from jigclu.system import memory, progress
from jigclu.system.device import launched_processes, launched_rank
from jigclu.system.dry_run import DownloadNeeded
from jigclu.system.environment import add_environment
from jigclu.system.errors import UserError
from jigclu.system.files import write_file
from jigclu.system.log_file import log_to
from jigclu.system.workdir_lock import locked
from jigclu.tasks.compare import CompareTask
from jigclu.tasks.report import ReportTask
from jigclu.tasks.stages import Task
from jigclu.training import checkpoint
from jigclu.training.encoder_task import EncoderTask, resolve_encoder
from jigclu.training.loop import RunResult
from jigclu.training.report import About, Change, run_and_report
from jigclu.training.run_records import CONFIG, ENVIRONMENT
from jigclu.training.task import TrainingTask

# Characters of a line, so that every binding stays on one; gin also draws lines of this length.
_LONG = 10**5
_TASK = re.compile(r"^launch\.task = @(?:\w+/)*(\w+)\(\)", re.MULTILINE)
# A quoted text, which may contain anything, or a macro.
_TEXT_OR_MACRO = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|%(\w+)""")


class Configuration(NamedTuple):
    """Result of reading gin files and command-line bindings.

    task: ready to run.
    given: all bindings, in gin's syntax.
    operative: all bindings that took effect, in gin's syntax.
    resolved: the same, as one `name = value` per line, macros replaced by their values.
    unused: names whose bindings have no effect, because a later file or the command line replaced
    the object that reads them.
    chosen: bindings that were left to the rules of `tasks.folder_recipe`.
    file: the last of the project's own run files that was read, such as gin/demo.gin, or None.
    changes: bindings that differ from the project's own files.
    """

    task: Task
    given: str
    operative: str
    resolved: str
    unused: list[str]
    chosen: Chosen
    file: str | None = None
    changes: Sequence[Change] = ()

    def for_workdir(self, workdir: Path) -> "Configuration":
        """Returns the configuration with the encoder of the weights in place of "auto"."""
        if not isinstance(self.task, EncoderTask):
            return self
        with _named_bindings(self.task), progress.status("reading the weights"):
            return self._replace(task=resolve_encoder(self.task, workdir))

    def check(self, workdir: Path) -> None:
        """Checks the task, before anything is written; see `TrainingTask.check`.

        Raises:
          UserError: also for a workdir with the records of another task.
        """
        self._check_records(workdir)
        with _named_bindings(self.task), progress.status("checking the configuration"):
            self.task.check(workdir)

    def _check_records(self, workdir: Path) -> None:
        own, found = _task_name(self.given), None
        try:
            found = _task_name((workdir / CONFIG).read_text(encoding="utf-8"))
        except OSError:
            if not isinstance(self.task, TrainingTask) and checkpoint.latest(workdir) is not None:
                found = "training"
        if found not in (None, own):
            raise UserError(
                f"workdir {workdir} holds the records of a {found} task, which a {own} task must "
                "not overwrite: use another --workdir"
            )

    def plan(self, workdir: Path) -> str:
        """Returns what a run would do, in several lines, and which bindings have no effect."""
        lines = [self.task.plan(workdir), *find_notes(self.task), *self.chosen.summary()]
        if isinstance(self.task, EncoderTask):
            lines += self.task.downloads(workdir)
        if self.unused:
            unused = ", ".join(self.unused)
            lines.append(f"without effect, because their readers were replaced: {unused}")
        return "\n".join(lines)

    def run(self, workdir: Path) -> RunResult:
        """Writes the configuration to the workdir, then runs the task; call `check` before.

        Raises:
          UserError: another run uses the workdir, or an error that shows only in the run.
        """
        is_main = launched_rank() == 0
        with (
            locked(workdir) if is_main else nullcontext(),
            log_to(workdir / "train.log") if is_main else nullcontext(),
        ):
            if not is_main:
                return self._run_task(workdir)
            add_environment(workdir / ENVIRONMENT, launched_processes())
            write_file(workdir / CONFIG, self.given.encode())
            write_file(workdir / "operative_config.gin", self.operative.encode())
            with _named_bindings(self.task):
                plan = self.plan(workdir)
            progress.CONSOLE.message(f"workdir: {workdir}\n{plan}")
            if isinstance(self.task, ReportTask | CompareTask):
                return self._run_task(workdir)
            about = About(plan, self.resolved, self.file, self.changes)
            return run_and_report(partial(self._run_task, workdir), workdir, about)

    def _run_task(self, workdir: Path) -> RunResult:
        with _named_bindings(self.task):
            return self.task.run(workdir, self.resolved)


@dataclass(frozen=True)
class _Undownloaded:
    """In a dry run, the place of a task whose data would have to be downloaded.

    Attributes:
      message: what would be downloaded.
    """

    message: str

    def check(self, workdir: Path) -> None:
        """Checks nothing."""

    def plan(self, workdir: Path) -> str:
        """Returns what would be downloaded, and that it is the whole plan."""
        del workdir
        return f"{self.message}\nthe rest of the plan depends on these data, and is left out"

    def run(self, workdir: Path, config: str) -> RunResult:
        """Is never called: dry runs only plan."""
        raise NotImplementedError


@contextmanager
def _named_bindings(task: Task) -> Iterator[None]:
    """Makes errors of a task name the bindings as the user writes them.

    Lack of memory becomes a user error.
    """
    advice = "use a smaller batch_size"
    if isinstance(task, TrainingTask):
        advice = task.memory_advice
    try:
        with memory.advise(advice):
            yield
    except UserError as error:
        # Callers tell kinds of errors apart, such as Diverged.
        raise type(error)(name_setting(str(error), task)) from error


def _task_name(config: str) -> str | None:
    """Returns the name of the task that a configuration binds, or None for a macro."""
    match = _TASK.search(config)
    return None if match is None else match[1]


def default_workdir(files: Sequence[str]) -> Path:
    """Returns runs/<name of the last gin file outside gin/base>, which only has parts of runs."""
    runs = [file for file in files if not gin_files.is_base(file)]
    return Path("runs") / Path((runs or files)[-1]).stem


def load(
    files: Sequence[str],
    bindings: Sequence[str],
    workdir: Path | None = None,
    allow_imports: bool = False,
) -> Configuration:
    """Reads gin files, then command-line bindings over them, and builds the task.

    Args:
      files: paths from the working directory, or names of the project's own files:
        gin/demo.gin or demo.gin.
      bindings: such as "pretrain.batch_size=512".
      workdir: of the run, which keeps the choices of its checkpoint when it resumes; None for
        a new run.
      allow_imports: whether the files may import Python modules, which runs their code.

    Raises:
      UserError: a file or a binding cannot be read, imports a module although that is not allowed,
        names something unknown, has an invalid value, or never takes effect.
    """
    load_stages_by(partial(load, allow_imports=allow_imports))
    valid = [*CONFIGURABLES, *binding_names()]
    gin.clear_config()
    layers = [layer for file in files for layer in gin_files.parse_file(file, valid, allow_imports)]
    flags: dict[str, str] = {}
    for binding in bindings:
        flags |= gin_files.parse_binding(binding, valid, allow_imports)
    layers.append(Layer("--gin_bindings", flags))
    with messages.one_line_errors("configuration", valid), progress.status("opening the data"):
        try:
            choices = chosen.choose(_bindings(gin.config_str(max_line_length=_LONG)), workdir)
            config = gin.config_str()
            given = _bindings(gin.config_str(max_line_length=_LONG))
            macros = set(_TEXT_OR_MACRO.findall(" ".join(given.values()))) - {""}
            derived = sizes.derive(given, macros)
            gin.parse_config([f"{name} = {value}" for name, value in derived.items()])
            task = gin.get_configurable("launch")()
        except DownloadNeeded as missing:
            # gin appends where it was raised.
            return _without_data(str(missing).splitlines()[0])
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    if not derived.keys().isdisjoint(operative):
        operative["SIZE"] = given["SIZE"]
    if "open_folder.root" in choices.bindings():
        operative["DATA"] = given["DATA"]
    unused = [name for name in given if not _took_effect(name, given, operative)]
    return Configuration(
        task=task,
        given=config,
        operative=gin.operative_config_str(),
        resolved=choices.annotate(_resolve(operative)),
        unused=_check_unused(unused, layers, given),
        chosen=choices,
        file=gin_files.followed_file(layers),
        changes=[Change(name, *values) for name, values in gin_files.changes(layers).items()],
    )


def _without_data(message: str) -> Configuration:
    """Returns what a dry run can tell of a task whose data would have to be downloaded."""
    config = gin.config_str()
    resolved = _resolve(_bindings(gin.config_str(max_line_length=_LONG)))
    return Configuration(_Undownloaded(message), config, config, resolved, [], Chosen([], None))


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


def _check_unused(
    unused: Sequence[str], layers: Sequence[Layer], given: Mapping[str, str]
) -> list[str]:
    """Returns the bindings whose reader was replaced.

    Raises:
      UserError: nothing reads a binding, although its reader was not replaced.
    """
    replaced = []
    leaves_choices = [chosen.MARKER in layer.bindings.values() for layer in layers]
    for name in unused:
        last = max(index for index, layer in enumerate(layers) if name in layer.bindings)
        if any(leaves_choices[last:]):
            continue  # It is there for other choices than those of the rules.
        if _replaced_reference(layers, last):
            replaced.append(name)
            continue
        raise UserError(
            f"{name} = {given[name]} never takes effect, because nothing that runs reads it; "
            f"{_advise_unused(name)} (bound in {layers[last].place})"
        )
    return replaced


def _advise_unused(name: str) -> str:
    used = _used_names()
    # A scope or the configurable is missing in the name.
    longer = [other for other in used if other.endswith((f"/{name}", f".{name}"))]
    if longer:
        return f"bind {' or '.join(longer[:3])} instead"
    unscoped = name.rpartition("/")[2]
    if unscoped in used:
        return f"remove it; did you mean {unscoped}?"
    suggestion = messages.suggest_same(name, used) if "." in name else messages.hint(name, used)
    return f"remove it{suggestion}"


def _replaced_reference(layers: Sequence[Layer], after: int) -> bool:
    """Returns whether a layer after a given one replaces a value that refers to an object."""
    values: dict[str, str] = {}
    for index, layer in enumerate(layers):
        for name, value in layer.bindings.items():
            old = values.get(name, "")
            if index > after and old != value and _refers(old):
                return True
        values |= layer.bindings
    return False


def _refers(value: str) -> bool:
    """Returns whether a value contains a reference or a macro outside of quoted texts."""
    outside = _TEXT_OR_MACRO.sub(lambda match: "%" if match[1] else "", value)
    return "@" in outside or "%" in outside


def _used_names() -> list[str]:
    operative = _bindings(gin.operative_config_str(max_line_length=_LONG))
    return list(operative)


def _resolve(operative: Mapping[str, str]) -> str:
    def expand(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        # Without the data, a macro may have no value yet.
        value = operative.get(match[1])
        return match[0] if value is None else _TEXT_OR_MACRO.sub(expand, value)

    return "\n".join(
        f"{name} = {_TEXT_OR_MACRO.sub(expand, value)}"
        for name, value in sorted(operative.items())
        if "." in name
    )


register()
