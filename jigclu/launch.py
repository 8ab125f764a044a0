"""The command-line program: python -m jigclu.launch --gin_file=gin/pretrain_r50.gin."""

import jigclu.system.compile_cache  # noqa: F401  # isort: skip  # Before torch is imported.
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import NoReturn

from absl import app, flags

from jigclu.system import dry_run, progress, signals
from jigclu.system.errors import UserError, printable

# Of torch's C++ code, whose warnings users cannot act on.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
try:
    # Worker processes import this file, too, for the doctor as well.
    with nullcontext() if parent_process() else progress.status("loading libraries"):
        from torch.distributed.elastic.multiprocessing.errors import record

        from jigclu import config
        from jigclu.system.device import launched_rank
        from jigclu.system.files import expand_home
        from jigclu.system.log_file import own_messages
        from jigclu.training import checkpoint
except KeyboardInterrupt:
    sys.exit(130)

_GIN_FILES = flags.DEFINE_multi_string(
    "gin_file", None, "gin file to read; repeatable, later files override earlier ones."
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "Binding that overrides the files: 'pretrain.batch_size=512'; repeatable."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for checkpoints, logs and configuration; default runs/<name of the last gin file "
    "outside gin/base>. The same folder resumes the run.",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the configuration and the plan; download and write nothing."
)
_ALLOW_IMPORTS = flags.DEFINE_bool(
    "allow_imports", False, "Let the gin files import Python modules, which runs their code."
)


def _run() -> None:
    """Reads the configuration, writes it to the workdir, and runs the task.

    Raises:
      UserError: any invalid user input.
      Stopped: a signal ended the run early.
    """
    if not _DRY_RUN.value:
        configuration, workdir = load_configuration()
        if configuration.run(workdir).is_stopped:
            raise signals.Stopped
        return
    with dry_run.dry_run():
        configuration, workdir = load_configuration()
        if launched_rank() == 0:
            plan = configuration.plan(workdir)
            print(printable(f"{configuration.resolved}\n\n{plan}\nworkdir: {workdir}"))


def _workdir(files: list[str]) -> Path:
    given = _WORKDIR.value
    return Path(expand_home(given)) if given else config.default_workdir(files)


def load_configuration() -> tuple[config.Configuration, Path]:
    """Reads and checks the configuration that the flags name; returns it with its workdir.

    Raises:
      UserError: any invalid user input.
    """
    if not _GIN_FILES.value:
        print(config.runnable())
        raise UserError("--gin_file is missing; pass one, such as --gin_file=gin/demo.gin")
    # torch's compiler emits warnings about its own use of torch, which users cannot fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    workdir = _workdir(_GIN_FILES.value)
    loaded = config.load(_GIN_FILES.value, _GIN_BINDINGS.value, workdir, _ALLOW_IMPORTS.value)
    configuration = loaded.for_workdir(workdir)
    configuration.check(workdir)
    return configuration, workdir


@record
def main(arguments: list[str], run: Callable[[], None] = _run) -> None:
    """Runs the command; reports user errors in one line, with exit status 2.

    A signal ends it with exit status 128 plus its number.

    Args:
      arguments: program name and arguments that are no flags, of which there must be none.
      run: does the work.
    """
    with signals.handle():
        _main(arguments, run)


def _main(arguments: list[str], run: Callable[[], None]) -> None:
    try:
        if len(arguments) > 1:
            raise UserError(f"argument {arguments[1]!r} is not a flag; see --help")
        with progress.CONSOLE, own_messages():
            run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        _exit_stopped(str(stopped))
    except Exception:
        # Callers of Python functions in C++ replace Stopped by other errors.
        if not signals.requested():
            raise
        _exit_stopped("")


def _exit_stopped(message: str) -> NoReturn:
    """Ends the process as a signal has asked, with a message of one line on the main rank."""
    if launched_rank() == 0:
        print(f"stopped by {signals.reason()}; {message or _what_remains()}", file=sys.stderr)
    sys.exit(signals.exit_status())


def _what_remains() -> str:
    """Describes what the command does after a signal has ended it."""
    try:
        found = checkpoint.latest(_workdir(_GIN_FILES.value)) if _GIN_FILES.value else None
    except UserError as error:
        return str(error)
    if found is None:
        return "this run has saved no checkpoint, so the same command starts it anew"
    return f"the same command resumes from {found}"


def _parse(arguments: list[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(arguments[1:]):
        print(f"{config.runnable()}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        print(f"error: {error}; see --help", file=sys.stderr)
        sys.exit(2)


def console(run: Callable[[], None] = _run) -> None:
    """Runs the command `jigclu`, which is the same as `python -m jigclu.launch`.

    Args:
      run: does the work after the flags are read.
    """
    # Gin files may import modules in the working directory, as under `python -m`.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    # absl's --help lists the flags of the script that was started, and pip's script has none.
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(partial(main, run=run), flags_parser=_parse)


if __name__ == "__main__":
    console()
