"""Lists of images: text files with one image per line.

A line may have been written by find (./n01/x.JPEG) or on Windows (n01\\x.JPEG), and may end with a
label (x.JPEG 0, x.JPEG,0), as in the lists of other trainers, which is ignored. Blank lines and
comments (# …) are, too.
"""

import os
import re
import stat
from collections.abc import Iterator

from jigclu.data.decode import USUAL_DECODING, Decoding
from jigclu.data.image_files import ImageFiles, is_image, require_folder
from jigclu.system import progress
from jigclu.system.errors import UserError, naming
from jigclu.system.files import expand_home

_LABEL = re.compile(r"[\s,;]+-?\d+$")


class ImageList(ImageFiles):
    """A source of the images named in a text file, one path per line, relative to a folder.

    See above for the lines. A bare ImageNet file name, as in the lists of SimCLR, is also found
    in the folder of its class: n04235860_14959.JPEG in n04235860/. An image that is listed
    several times, or under several names, counts once.
    """

    def __init__(self, path: str, root: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Reads the list and checks that every file exists.

        Args:
          path: of the list, a text file.
          root: folder to which the lines are relative.
          decoding: intensities and largest size.

        Raises:
          UserError: the list, root or a listed file is missing, a listed file is not an image, or
            the list is empty.
        """
        with naming("root"):
            root = require_folder(root)
        with naming("path"):
            lines = read_list(path)
        files: dict[tuple[int, int], str] = {}
        missing = []
        for line in progress.track(lines, f"looking for the images of {path}"):
            found = _find_listed(root, line)
            if found is None:
                missing.append(line)
            else:
                files.setdefault(*found)
        if missing:
            _check_utf8(path, missing)
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in {root}, "
                f"the first one is {missing[0]}: paths must be relative to that folder"
            )
        for file in files.values():
            if not is_image(os.path.join(root, file)):
                raise UserError(f"{path} lists {file}, which is not an image: remove the line")
        repeated = len(lines) - len(files)
        notes = [f"{repeated:,} lines of {path} repeat an image, which counts once"]
        super().__init__(root, list(files.values()), [], None, decoding, notes * (repeated > 0))


def spellings(line: str) -> Iterator[str]:
    """Yields the paths that a line of a list can mean, the likeliest first."""
    for name in dict.fromkeys((line, _LABEL.sub("", line))):
        yield name
        slashes = os.path.normpath(name.replace("\\", "/"))
        if slashes != name:
            yield slashes


def _check_utf8(path: str, lines: list[str]) -> None:
    """Raises UserError if lines, none of which names a file, are not UTF-8."""
    if any("\udc80" <= character <= "\udcff" for line in lines for character in line):
        raise UserError(f"{path} is not UTF-8 text, and names no files: save it as UTF-8")


def read_list(path: str) -> list[str]:
    """Returns the lines of a text file, except blank ones and comments.

    Bytes that are not UTF-8 stay what they are in file names; see `os.fsdecode`.

    Raises:
      UserError: the file is missing or empty.
    """
    path = expand_home(path)
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file: expected a list of images, one path per line")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        stripped = map(str.strip, file)
        lines = [line for line in stripped if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} lists no images: expected one path per line")
    return lines


def _find_listed(root: str, line: str) -> tuple[tuple[int, int], str] | None:
    """Returns the device and number of a listed file, and its name relative to root."""
    for name in spellings(line):
        for candidate in (name, os.path.join(name.split("_")[0], name)):
            try:
                found = os.stat(os.path.join(root, candidate))
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(found.st_mode):
                return (found.st_dev, found.st_ino), candidate
    return None
