"""Folders of images, with and without classes."""

import os

from jigclu.data.decode import USUAL_DECODING, Decoding
from jigclu.data.image_files import (
    ImageFiles,
    ImageWalk,
    image_extensions,
    list_images,
    require_folder,
)
from jigclu.system import progress
from jigclu.system.errors import UserError, naming

# Usual names of each split, in lower case.
_SPLITS = (
    ("train", "training"),
    ("val", "valid", "validation"),
    ("test", "testing"),
)
_ALL_SPLITS = tuple(name for names in _SPLITS for name in names)


class ImageFolder(ImageFiles):
    """A source with one folder per class, below a folder per split or without splits.

    Reads root/<split>/<class>/**, or root/<class>/** if root has no splits. The folder of a split
    may have any of the names train, training; val, valid, validation; test, testing, in any case.
    Classes and files are sorted; hidden ones are ignored.
    """

    def __init__(self, root: str, split: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Lists the files.

        Args:
          root: folder of the splits or of the classes.
          split: name of the split: 'train', 'val' or 'test'.
          decoding: intensities and largest size.

        Raises:
          UserError: root is missing, contains no class folders or no images, or contains only
            other splits; or it is not clear which folder the split is.
        """
        with naming("root"):
            folder = _split_folder(require_folder(root), split)
            classes = _class_folders(folder)
            files, notes = _list_classes(folder, classes)
        labels = [label for label, name in enumerate(classes) for _ in files[name]]
        listed = [file for name in classes for file in files[name]]
        super().__init__(folder, listed, classes, labels, decoding, notes)


class UnlabeledImages(ImageFiles):
    """A source of all images below a folder, sorted by path; hidden ones are ignored."""

    def __init__(self, root: str, decoding: Decoding = USUAL_DECODING) -> None:
        """Lists the files.

        Args:
          root: folder of the images.
          decoding: intensities and largest size.

        Raises:
          UserError: root is missing or contains no images.
        """
        with naming("root"):
            root = require_folder(root)
            files, notes = list_images(root)
        super().__init__(root, files, [], None, decoding, notes)


def open_folder(root: str, decoding: Decoding = USUAL_DECODING) -> ImageFiles:
    """Opens all images below a folder; if all are in subfolders, these are the classes.

    Errors name the setting `root`, unlike those of `scan_folder`.

    Args:
      root: folder of the images.
      decoding: intensities and largest size.
    """
    with naming("root"):
        return scan_folder(root, decoding)


def scan_folder(folder: str, decoding: Decoding = USUAL_DECODING) -> ImageFiles:
    """Opens all images below a folder, sorted by path; hidden ones are ignored.

    If every image is in a subfolder, the subfolders of the folder are the classes; otherwise the
    images are unlabeled.

    Raises:
      UserError: the folder is missing or contains no images.
    """
    root = require_folder(folder)
    files, notes = list_images(root)
    if any(os.sep not in file for file in files):
        return ImageFiles(root, files, [], None, decoding, notes)
    folders = [file.split(os.sep)[0] for file in files]
    classes = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[folder] for folder in folders]
    return ImageFiles(root, files, classes, labels, decoding, notes)


def _list_classes(folder: str, classes: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the sorted images of each class, relative to the folder, and notes for the plan."""
    files: dict[str, list[str]] = {}
    walk = ImageWalk(folder)
    for name in progress.track(classes, f"listing the classes of {folder}"):
        files[name] = list(walk.images(name))
    for file in walk.linked_images():
        files[file.split(os.sep)[0]].append(file)
    notes = walk.finish(sum(map(len, files.values())))
    return {name: sorted(found) for name, found in files.items()}, notes


def _class_folders(folder: str) -> list[str]:
    classes = _subfolders(folder)
    if not classes:
        raise UserError(
            f"{folder} contains no class folders: expected {folder}/<class>/<image>; "
            "read images without classes with UnlabeledImages"
        )
    return classes


def _split_folder(root: str, split: str) -> str:
    """Returns the folder of a split in root, or root itself if it has no splits.

    A split has one of its usual names in any case, and contains folders: a class may also be
    called train.
    """
    folders = [name for name in _subfolders(root) if _subfolders(os.path.join(root, name))]
    wanted = _split_names(split)
    found = [name for name in folders if name.lower() in wanted]
    if len(found) > 1:
        readings = " or ".join(os.path.join(root, name) for name in found)
        raise UserError(
            f"{root} has several folders for the split {split}, {readings}: bind the folder of "
            "the classes itself as root, or rename the others"
        )
    others = [name for name in folders if name.lower() in _ALL_SPLITS and name not in found]
    if found:
        _check_no_classes_beside(root, found[0])
        return os.path.join(root, found[0])
    if others:
        raise UserError(
            f"{os.path.join(root, split)} is missing or contains no class folders: {root} only has "
            f"the split {', '.join(others)}; choose it or add {split}"
        )
    return root


def find_splits(root: str, split: str) -> list[str]:
    """Returns the folders in root that have a usual name of a split, in any case."""
    names = [name for name in _subfolders(root) if name.lower() in _split_names(split)]
    return [os.path.join(root, name) for name in names]


def _split_names(split: str) -> tuple[str, ...]:
    """Returns the usual names of a split, in lower case."""
    return next((names for names in _SPLITS if split.lower() in names), (split.lower(),))


def _check_no_classes_beside(root: str, split: str) -> None:
    """Raises UserError for other folders with images: the split may be a class like them."""
    for name in _subfolders(root):
        if name.lower() in (split.lower(), *_ALL_SPLITS):
            continue
        with os.scandir(os.path.join(root, name)) as entries:
            has_images = any(
                entry.is_file() and os.path.splitext(entry.name)[1].lower() in image_extensions()
                for entry in entries
            )
        if has_images:
            raise UserError(
                f"{root} is ambiguous: {split} can be a split, with {name} no part of the data, "
                f"or a class like {name}; bind {os.path.join(root, split)} as root for the split, "
                f"or rename {split} for the class"
            )


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
