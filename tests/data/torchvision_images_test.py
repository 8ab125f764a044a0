"""Tests of jigclu.data.torchvision_images."""

import os
import pickle
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from torchvision import datasets

from jigclu.data.torchvision_images import TorchvisionImages
from jigclu.system import dry_run
from jigclu.system.errors import UserError
from tests.data.files_case import FilesTestCase


class TorchvisionImagesTest(FilesTestCase):
    def test_rejects_unknown_names_and_splits(self) -> None:
        with self.assertRaisesRegex(UserError, "'cifar-10'.*did you mean CIFAR10"):
            TorchvisionImages("cifar-10", self.root, "train", download=False)
        with self.assertRaisesRegex(UserError, "^split: 'unlabeled' is not a split of CIFAR10"):
            TorchvisionImages("CIFAR10", self.root, "unlabeled", download=False)

    @parameterized.parameters("CIFAR10", "CIFAR100", "STL10", "Imagenette")
    def test_rejects_missing_data(self, name: str) -> None:
        with self.assertRaisesRegex(UserError, f"{name} is not in .* set download to True"):
            TorchvisionImages(name, self.root, "train", download=False)

    @parameterized.parameters("CIFAR10", "CIFAR100", "STL10", "Imagenette")
    def test_dry_run_names_the_missing_data(self, name: str) -> None:
        folder = os.path.join(self.root, "data")
        message = f"^downloads: {name} to {folder}$"
        with dry_run.dry_run(), self.assertRaisesRegex(dry_run.DownloadNeeded, message):
            TorchvisionImages(name, folder, "train", download=True)
        self.assertFalse(os.path.exists(folder))

    def test_reads_cifar_as_channels_first(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        dataset = mock.Mock(data=pixels, classes=["cat", "dog"], targets=[0, 1, 1, 0, 1])
        with mock.patch.object(datasets, "CIFAR10", return_value=dataset) as opened:
            source = TorchvisionImages("CIFAR10", self.root, "val", download=True)
        opened.assert_called_once_with(self.root, train=False, download=False)
        # Not even a lock file is written, which a read-only share would not allow.
        self.assertEmpty(os.listdir(self.root))
        source = pickle.loads(pickle.dumps(source))
        self.assertLen(source, 5)
        self.assertEqual((source.classes, source.labels), (["cat", "dog"], [0, 1, 1, 0, 1]))
        np.testing.assert_array_equal(source.read(3).numpy(), pixels[3].transpose(2, 0, 1))
        self.assertEqual(source.name(3), "CIFAR10 val image 3")

    def test_downloads_missing_data_once(self) -> None:
        def open_or_fail(root: str, train: bool, download: bool) -> mock.Mock:
            if not download:
                raise RuntimeError("Dataset not found")
            return mock.Mock(data=np.zeros((2, 32, 32, 3), np.uint8), classes=["a"], targets=[0, 0])

        with mock.patch.object(datasets, "CIFAR10", side_effect=open_or_fail) as opened:
            self.assertLen(TorchvisionImages("CIFAR10", self.root, "train", download=True), 2)
        self.assertEqual(opened.call_args.kwargs, {"train": True, "download": True})

    def test_missing_data_in_a_folder_that_cannot_be_written_are_reported(self) -> None:
        path = self.create_tempfile().full_path
        with self.assertRaisesRegex(UserError, "root .* does not contain CIFAR10 and cannot be"):
            TorchvisionImages("CIFAR10", os.path.join(path, "data"), "train", download=True)

    def test_unlabeled_stl10_has_no_labels(self) -> None:
        pixels = np.zeros((2, 3, 96, 96), dtype=np.uint8)
        dataset = mock.Mock(data=pixels, labels=np.array([-1, -1]))
        with mock.patch.object(datasets, "STL10", return_value=dataset):
            source = TorchvisionImages("STL10", self.root, "unlabeled", download=False)
        self.assertIsNone(source.labels)
        self.assertEqual(source.read(1).shape, (3, 96, 96))

    def test_reads_imagenette_from_its_files(self) -> None:
        self.add("imagenette2/train/n01440764/a.JPEG", "imagenette2/train/n02102040/b.JPEG")
        source = TorchvisionImages("Imagenette", self.root, "train", download=False)
        self.assertEqual(source.classes, ["tench", "English springer"])
        self.assertEqual(source.labels, [0, 1])


if __name__ == "__main__":
    absltest.main()
