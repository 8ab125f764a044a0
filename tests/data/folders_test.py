"""Tests of jigclu.data.folders."""

import os
import pickle
import shutil
from unittest import mock

import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import folders, sources
from jigclu.data.decode import UnreadableImageError
from jigclu.system.errors import UserError
from tests.data.files_case import FilesTestCase
from tests.terminal import progress_log


class ImageFolderTest(FilesTestCase):
    def test_reads_the_requested_split(self) -> None:
        self.add("train/dog/b.png", "train/dog/a.JPEG", "train/cat/c.png", "val/cat/d.png")
        source = folders.ImageFolder(self.root, "train")
        self.assertEqual(source.classes, ["cat", "dog"])
        self.assertEqual(
            self.names(source), ["train/cat/c.png", "train/dog/a.JPEG", "train/dog/b.png"]
        )
        self.assertEqual(source.labels, [0, 1, 1])
        self.assertEqual(self.names(folders.ImageFolder(self.root, "val")), ["val/cat/d.png"])

    def test_reads_a_tree_without_splits_and_nested_classes(self) -> None:
        self.add("cat/images/c.png", "cat/a.png", "dog/d.png")
        source = folders.ImageFolder(self.root, "train")
        self.assertEqual(self.names(source), ["cat/a.png", "cat/images/c.png", "dog/d.png"])
        self.assertEqual(source.labels, [0, 0, 1])

    def test_a_class_can_be_called_train(self) -> None:
        self.add("boat/a.png", "train/b.png")
        self.assertEqual(folders.ImageFolder(self.root, "train").classes, ["boat", "train"])

    def test_ignores_hidden_and_other_files(self) -> None:
        self.add("cat/a.png", "cat/._a.png", ".cache/b.png")
        with open(os.path.join(self.root, "cat", "notes.txt"), "w") as file:
            file.write("not an image")
        self.assertEqual(self.names(folders.ImageFolder(self.root, "train")), ["cat/a.png"])

    def test_reads_pixels_after_pickling(self) -> None:
        self.add("cat/ä é.png")
        source = pickle.loads(pickle.dumps(folders.ImageFolder(self.root, "train")))
        image = source.read(0)
        self.assertEqual((image.dtype, image.shape), (torch.uint8, (3, 4, 6)))
        self.assertTrue((image == len("cat/ä é.png")).all())

    @parameterized.parameters("Train", "training", "TRAINING")
    def test_splits_have_their_usual_names_in_any_case(self, name: str) -> None:
        self.add(f"{name}/cat/a.png", "valid/cat/b.png", "Test/cat/c.png")
        for split, folder in (("train", name), ("val", "valid"), ("validation", "valid")):
            (file,) = self.names(folders.ImageFolder(self.root, split))
            self.assertEqual(file.split("/")[0], folder)

    def test_rejects_two_folders_of_one_split(self) -> None:
        self.add("val/cat/a.png", "Validation/cat/b.png")
        with self.assertRaisesRegex(UserError, "split val, .*/Validation or .*/val: bind"):
            folders.ImageFolder(self.root, "val")

    def test_rejects_a_split_beside_classes(self) -> None:
        self.add("boat/a.png", "train/engine/b.png")
        with self.assertRaisesRegex(UserError, "train can be a split, .* or a class like boat"):
            folders.ImageFolder(self.root, "train")
        self.add("other/deep/a.png")
        os.remove(os.path.join(self.root, "boat/a.png"))
        self.assertEqual(folders.ImageFolder(self.root, "train").classes, ["engine"])

    def test_folders_named_like_images_are_folders(self) -> None:
        self.add("scene8.jpg/a.png", "scene8.jpg/deep.tif/b.png")
        source = folders.ImageFolder(self.root, "train")
        self.assertEqual(source.classes, ["scene8.jpg"])
        self.assertEqual(self.names(source), ["scene8.jpg/a.png", "scene8.jpg/deep.tif/b.png"])

    def test_linked_classes_follow_the_files_that_are_not_linked(self) -> None:
        self.add("b/1.png", "c/2.png")
        os.symlink(os.path.join(self.root, "b"), os.path.join(self.root, "a"))
        os.symlink(os.path.join(self.root, "b/1.png"), os.path.join(self.root, "c/1.png"))
        source = folders.ImageFolder(self.root, "train")
        self.assertEqual(source.classes, ["a", "b", "c"])
        self.assertEqual(self.names(source), ["b/1.png", "c/2.png"])
        self.assertEqual(source.labels, [1, 2])

    def test_deleted_files_are_unreadable(self) -> None:
        self.add("cat/a.png")
        source = folders.ImageFolder(self.root, "train")
        os.remove(source.name(0))
        with self.assertRaisesRegex(UnreadableImageError, "No such file"):
            source.read(0)

    def test_rejects_a_missing_split_instead_of_reading_splits_as_classes(self) -> None:
        self.add("train/cat/a.png")
        with self.assertRaisesRegex(UserError, "only has the split train"):
            folders.ImageFolder(self.root, "val")

    def test_rejects_folders_without_classes_or_images(self) -> None:
        with self.assertRaisesRegex(UserError, "nowhere is not a folder"):
            folders.ImageFolder(os.path.join(self.root, "nowhere"), "train")
        with self.assertRaisesRegex(UserError, "contains no class folders"):
            folders.ImageFolder(self.root, "train")
        os.mkdir(os.path.join(self.root, "cat"))
        with self.assertRaisesRegex(UserError, "contains no images: expected files named .jpg"):
            folders.ImageFolder(self.root, "train")


class UnlabeledImagesTest(FilesTestCase):
    def test_reads_flat_and_nested_folders(self) -> None:
        self.add("z.png", "deep/er/a.jpg", "b.webp")
        source = folders.UnlabeledImages(self.root)
        self.assertEqual(self.names(source), ["b.webp", "deep/er/a.jpg", "z.png"])
        self.assertEqual(source.classes, [])
        self.assertIsNone(source.labels)

    def test_rejects_empty_folders(self) -> None:
        with self.assertRaisesRegex(UserError, "contains no images"):
            folders.UnlabeledImages(self.root)

    def test_follows_links_except_circular_ones(self) -> None:
        self.add("a/b.png", "elsewhere/c.png")
        os.symlink(self.root, os.path.join(self.root, "a", "back"))
        os.symlink(os.path.join(self.root, "elsewhere"), os.path.join(self.root, "a", "link"))
        names = self.names(folders.UnlabeledImages(os.path.join(self.root, "a")))
        self.assertEqual(names, ["a/b.png", "a/link/c.png"])

    def test_reads_circles_of_links_and_siblings_once(self) -> None:
        self.add("a/1.png", "b/2.png")
        os.symlink("../b", os.path.join(self.root, "a", "x"))
        os.symlink("../a", os.path.join(self.root, "b", "y"))
        os.symlink("a", os.path.join(self.root, "A"))
        os.symlink("1.png", os.path.join(self.root, "a", "0.png"))
        source = folders.UnlabeledImages(self.root)
        self.assertEqual(self.names(source), ["a/1.png", "b/2.png"])
        self.assertEmpty(source.notes)

    def test_reads_all_formats_of_pillow_with_and_without_extensions(self) -> None:
        Image.init()
        for name, kind in (
            ("a.jfif", "JPEG"),
            ("b.jpe", "JPEG"),
            ("c.AVIF", "AVIF"),
            ("d.pgm", "PPM"),
            ("e.tga", "TGA"),
            ("f.jp2", "JPEG2000"),
            ("ILSVRC2012_1", "JPEG"),
            ("photo.2024", "PNG"),
        ):
            if kind not in Image.SAVE:  # By the version of Pillow.
                kind = "PNG"
            mode = "L" if kind == "PPM" else "RGB"
            Image.new(mode, (9, 5), 77).save(os.path.join(self.root, name), kind)
        source = folders.UnlabeledImages(self.root)
        self.assertLen(source, 8)
        for index in range(8):
            self.assertEqual(source.read(index).shape, (3, 5, 9), source.name(index))

    def test_counts_files_that_are_left_out(self) -> None:
        self.add("a.png")
        for name in ("README", "notes.txt", "movie.mpg", ".hidden"):
            with open(os.path.join(self.root, name), "w") as file:
                file.write("not an image")
        notes = folders.UnlabeledImages(self.root).notes
        self.assertEqual(
            notes, [f"left out 3 files that are not images, such as {self.root}/README"]
        )

    def test_expands_the_home_folder(self) -> None:
        self.add("data/b.png")
        with mock.patch.dict(os.environ, HOME=self.root):
            self.assertEqual(self.names(folders.UnlabeledImages("~/data")), ["data/b.png"])


class OpenFolderTest(FilesTestCase):
    def test_subfolders_are_classes_if_they_contain_every_image(self) -> None:
        self.add("dog/deep/b.png", "cat/z.png", "cat-2/c.png", "dog/a.png", ".hidden/d.png")
        source = folders.scan_folder(self.root)
        self.assertEqual(
            self.names(source), ["cat-2/c.png", "cat/z.png", "dog/a.png", "dog/deep/b.png"]
        )
        self.assertEqual(source.classes, ["cat", "cat-2", "dog"])
        self.assertEqual(source.labels, [1, 0, 2, 2])

    def test_images_beside_subfolders_leave_all_unlabeled(self) -> None:
        self.add("cat/z.png", "a.png")
        source = folders.scan_folder(self.root)
        self.assertEqual(self.names(source), ["a.png", "cat/z.png"])
        self.assertEqual((source.classes, source.labels), ([], None))

    def test_rejects_missing_and_empty_folders(self) -> None:
        with self.assertRaisesRegex(UserError, "^root: .*nowhere is not a folder"):
            folders.open_folder(os.path.join(self.root, "nowhere"))
        with self.assertRaisesRegex(UserError, "^root: .* contains no images"):
            folders.open_folder(self.root)


class ProgressTest(FilesTestCase):
    def test_listing_files_shows_progress(self) -> None:
        self.add("train/cat/0.png", "train/dog/0.png")
        with progress_log() as log:
            folder = folders.ImageFolder(self.root, "train")
            folders.UnlabeledImages(self.root)
            folder.fingerprint(deep=True)
        messages = [line.rsplit(", ", 1)[0] for line in log.getvalue().splitlines()]
        self.assertEqual(
            messages,
            [
                f"listing the classes of {self.root}/train, 0 of 2",
                f"listing the images of {self.root}",
                f"checking the files of {self.root}/train, 0 of 2",
            ],
        )


class FingerprintTest(FilesTestCase):
    def fingerprint(self, deep: bool) -> str:
        return folders.ImageFolder(os.path.join(self.root, "data"), "train").fingerprint(deep)

    def test_shallow_fingerprint_depends_on_names_but_not_on_the_folder(self) -> None:
        self.add("data/cat/a.png", "data/dog/b.png")
        before = self.fingerprint(False), self.fingerprint(True)
        shutil.copytree(os.path.join(self.root, "data"), os.path.join(self.root, "copy"))
        copy = folders.ImageFolder(os.path.join(self.root, "copy"), "train")
        self.assertEqual(copy.fingerprint(False), before[0])
        self.add("data/dog/c.png")
        self.assertNotEqual(self.fingerprint(False), before[0])
        self.assertNotEqual(self.fingerprint(True), before[1])

    def test_deep_fingerprint_changes_with_a_file(self) -> None:
        self.add("data/cat/a.png", "data/dog/b.png")
        before = self.fingerprint(False), self.fingerprint(True)
        os.utime(os.path.join(self.root, "data/cat/a.png"), (1, 1))
        self.assertEqual(self.fingerprint(False), before[0])
        self.assertNotEqual(self.fingerprint(True), before[1])

    def test_deep_fingerprint_accepts_missing_files(self) -> None:
        self.add("data/cat/a.png", "data/dog/b.png")
        before = self.fingerprint(True)
        missing = os.path.join(self.root, "data/dog/b.png")
        os.remove(missing)
        os.symlink("nowhere", missing)
        self.assertNotEqual(self.fingerprint(True), before)

    def test_deep_fingerprint_of_images_in_memory_depends_on_pixels(self) -> None:
        images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
        first = sources.ImageArray("a", images, ["x"], [0, 0])
        other = sources.ImageArray("a", images + 1, ["x"], [0, 0])
        self.assertEqual(first.fingerprint(False), other.fingerprint(False))
        self.assertNotEqual(first.fingerprint(True), other.fingerprint(True))
        fewer = sources.ImageArray("a", images[:1], ["x"], [0])
        self.assertNotEqual(first.fingerprint(False), fewer.fingerprint(False))


if __name__ == "__main__":
    absltest.main()
