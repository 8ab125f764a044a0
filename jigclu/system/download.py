"""Downloads that resume after an interruption."""

import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from jigclu.system import progress
from jigclu.system.dry_run import check_download
from jigclu.system.errors import UserError

PARTIAL_SUFFIX = ".part"

_TIMEOUT = 60  # Seconds without any data.
_PART = 2**20  # Bytes.
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def download(url: str, path: Path) -> None:
    """Downloads a file, unless it exists; continues an earlier, interrupted download.

    The file gets its name only after it has the size that the server announced. Several
    processes may call this at once: one of them downloads.

    Args:
      url: of the file.
      path: of the file on this machine; missing folders are created.

    Raises:
      UserError: the download failed; what has arrived is kept for the next attempt.
      DownloadNeeded: in a dry run.
    """
    check_download(url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _complete(url, partial)
                os.replace(partial, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{url} cannot be downloaded ({error}): repeat the command to continue, or download "
            f"the file on a machine with a network connection and store it as {path}"
        ) from error


def _complete(url: str, partial: Path) -> None:
    """Appends to a partial file until it is complete; tries again as long as that helps."""
    name = url.rpartition("/")[2]
    with progress.status(f"downloading {name} (KB)", patience=0) as work:
        while True:
            before = _size(partial)
            try:
                _fetch(url, partial, work)
                return
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) or _size(partial) <= before:
                    raise


def _fetch(url: str, partial: Path, work: progress.Work) -> None:
    """Requests the rest of a file, and appends what arrives; raises unless it is all."""
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        # The file has no more bytes than the partial one, which may belong to an older version.
        partial.unlink()
        _fetch(url, partial, work)
        return
    with response, open(partial, "ab") as file:
        start, total = _extent(response, start)
        file.truncate(start)
        work.done, work.total = start // 1000, total // 1000
        while part := response.read(_PART):
            file.write(part)
            work.done = file.tell() // 1000
        if file.tell() != total:
            raise OSError(f"the connection ended after {file.tell():,} of {total:,} bytes")


def _extent(response: http.client.HTTPResponse, start: int) -> tuple[int, int]:
    """Returns where in the file a response starts, and the size of the whole file.

    Args:
      response: to a request for the bytes from start on.
      start: what a server that ignores the range replaces by 0.
    """
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status == http.HTTPStatus.PARTIAL_CONTENT and found and int(found[1]) == start:
        return start, int(found[2])
    size = response.headers.get("Content-Length")
    if response.status != http.HTTPStatus.OK or size is None:
        raise ValueError("the server does not announce the size of the file")
    return 0, int(size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
