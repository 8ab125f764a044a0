"""Lists of images."""

import os

from jigclu.data.decode import USUAL_DECODING, Decoding
from jigclu.data.image_files import ImageFiles, require_folder
from jigclu.system import progress
from jigclu.system.errors import UserError, naming


class ImageList(ImageFiles):
    """A source of the images named in a text file, one path per line, relative to a folder.

    A bare ImageNet file name, as in the lists of SimCLR, is also found in the folder of its
    class: n04235860_14959.JPEG in n04235860/. Blank lines are ignored.
    """

    def __init__(self, path: str, root: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Reads the list and checks that every file exists.

        Raises:
          UserError: the list, root or a listed file is missing, or the list is empty.
        """
        with naming("root"):
            root = require_folder(root)
        with naming("path"):
            lines = read_list(path)
        tracked = progress.track(lines, f"looking for the images of {path}")
        found = [_find_listed(root, line) for line in tracked]
        missing = [line for line, file in zip(lines, found, strict=True) if file is None]
        if missing:
            raise UserError(
                f"{len(missing)} of the {len(lines)} images of {path} are not in {root}, "
                f"the first one is {missing[0]}: paths must be relative to that folder"
            )
        super().__init__(root, [file for file in found if file], [], None, decoding)


def read_list(path: str) -> list[str]:
    """Returns the non-blank lines of a text file.

    Raises:
      UserError: the file is missing, empty or not UTF-8.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file: expected a list of images, one path per line")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    if not lines:
        raise UserError(f"{path} lists no images: expected one path per line")
    return lines


def _find_listed(root: str, line: str) -> str | None:
    candidates = [line, os.path.join(line.split("_")[0], line)]
    return next((c for c in candidates if os.path.isfile(os.path.join(root, c))), None)
