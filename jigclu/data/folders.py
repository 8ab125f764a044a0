"""Folders of images, with and without classes."""

import os

from jigclu.data.decode import USUAL_DECODING, Decoding
from jigclu.data.image_files import (
    ImageFiles,
    find_images,
    list_images,
    require_folder,
    require_images,
)
from jigclu.system import progress
from jigclu.system.errors import UserError, naming

_SPLITS = ("train", "val", "test")


class ImageFolder(ImageFiles):
    """A source with one folder per class, below a folder per split or without splits.

    Reads root/<split>/<class>/**, or root/<class>/** if root has no folder of that split. Classes
    and files are sorted; hidden ones are ignored.
    """

    def __init__(self, root: str, split: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing, contains no class folders or no images, or contains only
            other splits.
        """
        with naming("root"):
            folder = _split_folder(require_folder(root), split)
            classes = _class_folders(folder)
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(progress.track(classes, f"listing the classes of {folder}")):
            found = sorted(find_images(folder, name + os.sep))
            files += found
            labels += [label] * len(found)
        with naming("root"):
            require_images(folder, files)
        super().__init__(folder, files, classes, labels, decoding)


class UnlabeledImages(ImageFiles):
    """A source of all images below a folder, sorted by path; hidden ones are ignored."""

    def __init__(self, root: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Lists the files.

        Raises:
          UserError: root is missing or contains no images.
        """
        with naming("root"):
            root = require_folder(root)
            files = list_images(root)
        super().__init__(root, files, [], None, decoding)


def open_folder(root: str) -> ImageFiles:
    """Returns the images of `scan_folder`; errors name the setting `root`."""
    with naming("root"):
        return scan_folder(root)


def scan_folder(folder: str) -> ImageFiles:
    """Opens all images below a folder, sorted by path; hidden ones are ignored.

    If every image is in a subfolder, the subfolders of the folder are the classes; otherwise the
    images are unlabeled.

    Raises:
      UserError: the folder is missing or contains no images.
    """
    root = require_folder(folder)
    files = list_images(root)
    if any(os.sep not in file for file in files):
        return ImageFiles(root, files, classes=[], labels=None)
    folders = [file.split(os.sep)[0] for file in files]
    classes = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageFiles(root, files, classes, [numbers[folder] for folder in folders])


def _class_folders(folder: str) -> list[str]:
    classes = _subfolders(folder)
    if not classes:
        raise UserError(
            f"{folder} contains no class folders: expected {folder}/<class>/<image>; "
            "read images without classes with UnlabeledImages"
        )
    return classes


def _split_folder(root: str, split: str) -> str:
    """Returns root/split if it contains folders (a class may also be called train), else root."""
    folder = os.path.join(root, split)
    if os.path.isdir(folder) and _subfolders(folder):
        return folder
    others = [other for other in _SPLITS if other != split and other in _subfolders(root)]
    others = [other for other in others if _subfolders(os.path.join(root, other))]
    if others:
        raise UserError(
            f"{folder} is missing or contains no class folders: {root} only has the split "
            f"{', '.join(others)}; choose it or add {split}"
        )
    return root


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
