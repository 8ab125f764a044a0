"""Objects that create a file or folder when they are unpickled without restrictions."""

import bz2
import gzip
import io
import logging
import lzma
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class _Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


class Payload(NamedTuple):
    """A name, and a function from the path to create to the object."""

    name: str
    build: Callable[[Path], object]


def _python(path: Path) -> str:
    return f"__import__('os').mkdir({str(path)!r})"


PAYLOADS = [
    Payload("mkdir", lambda path: _Call(os.mkdir, str(path))),
    Payload("makedirs", lambda path: _Call(os.makedirs, str(path))),
    Payload("symlink", lambda path: _Call(os.symlink, "/", str(path))),
    Payload("os_open", lambda path: _Call(os.open, str(path), os.O_CREAT | os.O_WRONLY)),
    Payload("mkfifo", lambda path: _Call(os.mkfifo, str(path))),
    Payload("system", lambda path: _Call(os.system, f"touch {path}")),
    Payload("spawn", lambda path: _Call(os.spawnlp, os.P_WAIT, "touch", "touch", str(path))),
    Payload("call", lambda path: _Call(subprocess.call, ["touch", str(path)])),
    Payload("check_output", lambda path: _Call(subprocess.check_output, ["touch", str(path)])),
    Payload("run", lambda path: _Call(subprocess.run, ["touch", str(path)])),
    Payload("getoutput", lambda path: _Call(subprocess.getoutput, f"touch {path}")),
    Payload("python", lambda path: _Call(subprocess.call, [sys.executable, "-c", _python(path)])),
    Payload("eval", lambda path: _Call(eval, _python(path))),
    Payload("exec", lambda path: _Call(exec, _python(path))),
    Payload("open", lambda path: _Call(open, str(path), "w")),
    Payload("io_open", lambda path: _Call(io.FileIO, str(path), "w")),
    Payload("path_touch", lambda path: _Call(pathlib.Path.touch, path)),
    Payload("path_mkdir", lambda path: _Call(pathlib.Path.mkdir, path)),
    Payload("copy", lambda path: _Call(shutil.copy, __file__, str(path))),
    Payload("copytree", lambda path: _Call(shutil.copytree, os.path.dirname(__file__), str(path))),
    Payload("gzip", lambda path: _Call(gzip.open, str(path), "w")),
    Payload("bz2", lambda path: _Call(bz2.open, str(path), "w")),
    Payload("lzma", lambda path: _Call(lzma.open, str(path), "w")),
    Payload("zip", lambda path: _Call(zipfile.ZipFile, str(path), "w")),
    Payload("tar", lambda path: _Call(tarfile.open, str(path), "w")),
    Payload("database", lambda path: _Call(sqlite3.connect, str(path))),
    Payload("log_file", lambda path: _Call(logging.FileHandler, str(path))),
    Payload("numpy_save", lambda path: _Call(np.ndarray.tofile, np.zeros(1), str(path))),
    Payload("torch_save", lambda path: _Call(torch.save, {}, path)),
    Payload("nested", lambda path: {"x": [({"y": _Call(os.mkdir, str(path))},)]}),
    Payload("as_a_key", lambda path: {_Call(os.mkdir, str(path)): 1}),
]
