"""Files that anyone may have written: they are opened and measured before they are read."""

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np


def open_regular(path: str | Path) -> IO[bytes]:
    """Opens a file for reading, unless it is a FIFO, a device or a folder, or a link to one.

    Raises:
      OSError: the file cannot be opened, or is not a regular one.
    """
    # Without this flag, opening a FIFO waits for a writer.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(file, "rb")


def file_size(file: IO[bytes]) -> int:
    """Returns the bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def map_array(path: str | Path) -> "np.memmap[Any, np.dtype[Any]]":
    """Maps an array in NumPy's format into memory, read-only.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a file, contains objects, or is shorter than its header says.
    """
    with open_regular(path):
        pass
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # An invalid header can raise any error.
        raise ValueError(str(error)) from error


def load_array(path: str | Path) -> Any:
    """Reads an array in NumPy's format; raises as `map_array`.

    Unlike `np.load`, it does not reserve memory for more than the file contains.
    """
    return np.array(map_array(path))
