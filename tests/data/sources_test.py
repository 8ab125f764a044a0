"""Tests of jigclu.data.sources."""

import os
import pickle
import shutil
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import sources
from jigclu.data.decode import UnreadableImageError
from jigclu.system.errors import UserError
from tests.terminal import progress_log


class FilesTestCase(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.create_tempdir().full_path

    def add(self, *files: str) -> None:
        """Writes one image per name; its gray value is the length of the name."""
        for file in files:
            path = os.path.join(self.root, file)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Image.new("RGB", (6, 4), (len(file),) * 3).save(path)

    def names(self, source: sources.Source) -> list[str]:
        return [os.path.relpath(source.name(index), self.root) for index in range(len(source))]


class ImageFolderTest(FilesTestCase):
    def test_reads_the_requested_split(self) -> None:
        self.add("train/dog/b.png", "train/dog/a.JPEG", "train/cat/c.png", "val/cat/d.png")
        source = sources.ImageFolder(self.root, "train")
        self.assertEqual(source.classes, ["cat", "dog"])
        self.assertEqual(
            self.names(source), ["train/cat/c.png", "train/dog/a.JPEG", "train/dog/b.png"]
        )
        self.assertEqual(source.labels, [0, 1, 1])
        self.assertEqual(self.names(sources.ImageFolder(self.root, "val")), ["val/cat/d.png"])

    def test_reads_a_tree_without_splits_and_nested_classes(self) -> None:
        self.add("cat/images/c.png", "cat/a.png", "dog/d.png")
        source = sources.ImageFolder(self.root, "train")
        self.assertEqual(self.names(source), ["cat/a.png", "cat/images/c.png", "dog/d.png"])
        self.assertEqual(source.labels, [0, 0, 1])

    def test_a_class_can_be_called_train(self) -> None:
        self.add("boat/a.png", "train/b.png")
        self.assertEqual(sources.ImageFolder(self.root, "train").classes, ["boat", "train"])

    def test_ignores_hidden_and_other_files(self) -> None:
        self.add("cat/a.png", "cat/._a.png", ".cache/b.png")
        with open(os.path.join(self.root, "cat", "notes.txt"), "w") as file:
            file.write("not an image")
        self.assertEqual(self.names(sources.ImageFolder(self.root, "train")), ["cat/a.png"])

    def test_reads_pixels_after_pickling(self) -> None:
        self.add("cat/ä é.png")
        source = pickle.loads(pickle.dumps(sources.ImageFolder(self.root, "train")))
        image = source.read(0)
        self.assertEqual((image.dtype, image.shape), (torch.uint8, (3, 4, 6)))
        self.assertTrue((image == len("cat/ä é.png")).all())

    def test_deleted_files_are_unreadable(self) -> None:
        self.add("cat/a.png")
        source = sources.ImageFolder(self.root, "train")
        os.remove(source.name(0))
        with self.assertRaisesRegex(UnreadableImageError, "No such file"):
            source.read(0)

    def test_rejects_a_missing_split_instead_of_reading_splits_as_classes(self) -> None:
        self.add("train/cat/a.png")
        with self.assertRaisesRegex(UserError, "only has the split train"):
            sources.ImageFolder(self.root, "val")

    def test_rejects_folders_without_classes_or_images(self) -> None:
        with self.assertRaisesRegex(UserError, "nowhere is not a folder"):
            sources.ImageFolder(os.path.join(self.root, "nowhere"), "train")
        with self.assertRaisesRegex(UserError, "contains no class folders"):
            sources.ImageFolder(self.root, "train")
        os.mkdir(os.path.join(self.root, "cat"))
        with self.assertRaisesRegex(UserError, "contains no images: expected files named .jpg"):
            sources.ImageFolder(self.root, "train")


class UnlabeledImagesTest(FilesTestCase):
    def test_reads_flat_and_nested_folders(self) -> None:
        self.add("z.png", "deep/er/a.jpg", "b.webp")
        source = sources.UnlabeledImages(self.root)
        self.assertEqual(self.names(source), ["b.webp", "deep/er/a.jpg", "z.png"])
        self.assertEqual(source.classes, [])
        self.assertIsNone(source.labels)

    def test_rejects_empty_folders(self) -> None:
        with self.assertRaisesRegex(UserError, "contains no images"):
            sources.UnlabeledImages(self.root)

    def test_follows_links_except_circular_ones(self) -> None:
        self.add("a/b.png", "elsewhere/c.png")
        os.symlink(self.root, os.path.join(self.root, "a", "back"))
        os.symlink(os.path.join(self.root, "elsewhere"), os.path.join(self.root, "a", "link"))
        names = self.names(sources.UnlabeledImages(os.path.join(self.root, "a")))
        self.assertEqual(names, ["a/b.png", "a/link/c.png"])

    def test_expands_the_home_folder(self) -> None:
        self.add("data/b.png")
        with mock.patch.dict(os.environ, HOME=self.root):
            self.assertEqual(self.names(sources.UnlabeledImages("~/data")), ["data/b.png"])


class OpenFolderTest(FilesTestCase):
    def test_subfolders_are_classes_if_they_contain_every_image(self) -> None:
        self.add("dog/deep/b.png", "cat/z.png", "cat-2/c.png", "dog/a.png", ".hidden/d.png")
        source = sources.open_folder(self.root)
        self.assertEqual(
            self.names(source), ["cat-2/c.png", "cat/z.png", "dog/a.png", "dog/deep/b.png"]
        )
        self.assertEqual(source.classes, ["cat", "cat-2", "dog"])
        self.assertEqual(source.labels, [1, 0, 2, 2])

    def test_images_beside_subfolders_leave_all_unlabeled(self) -> None:
        self.add("cat/z.png", "a.png")
        source = sources.open_folder(self.root)
        self.assertEqual(self.names(source), ["a.png", "cat/z.png"])
        self.assertEqual((source.classes, source.labels), ([], None))

    def test_rejects_missing_and_empty_folders(self) -> None:
        with self.assertRaisesRegex(UserError, "^images: .*nowhere is not a folder"):
            sources.open_folder(os.path.join(self.root, "nowhere"))
        with self.assertRaisesRegex(UserError, "^images: .* contains no images"):
            sources.open_folder(self.root)


class ProgressTest(FilesTestCase):
    def test_listing_files_shows_progress(self) -> None:
        self.add("train/cat/0.png", "train/dog/0.png")
        with progress_log() as log:
            folder = sources.ImageFolder(self.root, "train")
            sources.UnlabeledImages(self.root)
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
        return sources.ImageFolder(os.path.join(self.root, "data"), "train").fingerprint(deep)

    def test_shallow_fingerprint_depends_on_names_but_not_on_the_folder(self) -> None:
        self.add("data/cat/a.png", "data/dog/b.png")
        before = self.fingerprint(False), self.fingerprint(True)
        shutil.copytree(os.path.join(self.root, "data"), os.path.join(self.root, "copy"))
        copy = sources.ImageFolder(os.path.join(self.root, "copy"), "train")
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


class ImageListTest(FilesTestCase):
    def read_list(self, text: str) -> sources.ImageList:
        return sources.ImageList(self.create_tempfile(content=text).full_path, self.root)

    def test_follows_the_order_of_the_list(self) -> None:
        self.add("b.png", "sub/a.png", "c.png")
        self.assertEqual(self.names(self.read_list("sub/a.png\n\nb.png\n")), ["sub/a.png", "b.png"])

    def test_finds_bare_imagenet_names_in_the_folder_of_their_class(self) -> None:
        self.add("n04235860/n04235860_14959.JPEG")
        source = self.read_list("n04235860_14959.JPEG\n")
        self.assertEqual(self.names(source), ["n04235860/n04235860_14959.JPEG"])

    def test_reports_the_first_and_the_number_of_missing_files(self) -> None:
        self.add("a.png")
        with self.assertRaisesRegex(UserError, "2 of the 3 images .* the first one is b.png"):
            self.read_list("a.png\nb.png\nc.png\n")

    def test_rejects_an_empty_or_missing_list(self) -> None:
        with self.assertRaisesRegex(UserError, "lists no images"):
            self.read_list("\n \n")
        with self.assertRaisesRegex(UserError, "is not a file"):
            sources.ImageList(os.path.join(self.root, "missing.txt"), self.root)

    def test_accepts_a_byte_order_mark_and_rejects_other_encodings(self) -> None:
        self.add("ä.png")
        self.assertLen(self.read_list("\ufeffä.png\n"), 1)
        path = os.path.join(self.root, "list.txt")
        with open(path, "wb") as file:
            file.write("ä.png".encode("latin-1"))
        with self.assertRaisesRegex(UserError, "list.txt is not UTF-8 text"):
            sources.ImageList(path, self.root)


class TorchvisionImagesTest(FilesTestCase):
    def test_rejects_unknown_names_and_splits(self) -> None:
        with self.assertRaisesRegex(UserError, "'cifar-10'.*did you mean CIFAR10"):
            sources.TorchvisionImages("cifar-10", self.root, "train", download=False)
        with self.assertRaisesRegex(UserError, "^split: 'unlabeled' is not a split of CIFAR10"):
            sources.TorchvisionImages("CIFAR10", self.root, "unlabeled", download=False)

    @parameterized.parameters("CIFAR10", "CIFAR100", "STL10", "Imagenette")
    def test_rejects_missing_data(self, name: str) -> None:
        with self.assertRaisesRegex(UserError, f"{name} is not in .* set download to True"):
            sources.TorchvisionImages(name, self.root, "train", download=False)

    def test_reads_cifar_as_channels_first(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        dataset = mock.Mock(data=pixels, classes=["cat", "dog"], targets=[0, 1, 1, 0, 1])
        with mock.patch.object(sources.datasets, "CIFAR10", return_value=dataset) as opened:
            source = sources.TorchvisionImages("CIFAR10", self.root, "val", download=True)
        opened.assert_called_once_with(self.root, train=False, download=True)
        source = pickle.loads(pickle.dumps(source))
        self.assertLen(source, 5)
        self.assertEqual((source.classes, source.labels), (["cat", "dog"], [0, 1, 1, 0, 1]))
        np.testing.assert_array_equal(source.read(3).numpy(), pixels[3].transpose(2, 0, 1))
        self.assertEqual(source.name(3), "CIFAR10 val image 3")

    def test_unlabeled_stl10_has_no_labels(self) -> None:
        pixels = np.zeros((2, 3, 96, 96), dtype=np.uint8)
        dataset = mock.Mock(data=pixels, labels=np.array([-1, -1]))
        with mock.patch.object(sources.datasets, "STL10", return_value=dataset):
            source = sources.TorchvisionImages("STL10", self.root, "unlabeled", download=False)
        self.assertIsNone(source.labels)
        self.assertEqual(source.read(1).shape, (3, 96, 96))

    def test_reads_imagenette_from_its_files(self) -> None:
        self.add("imagenette2/train/n01440764/a.JPEG", "imagenette2/train/n02102040/b.JPEG")
        source = sources.TorchvisionImages("Imagenette", self.root, "train", download=False)
        self.assertEqual(source.classes, ["tench", "English springer"])
        self.assertEqual(source.labels, [0, 1])


if __name__ == "__main__":
    absltest.main()
