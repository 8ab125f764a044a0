"""Tests of jigclu.data.webdataset."""

import gzip
import io
import os
import tarfile
from pathlib import Path
from unittest import mock

import torch
from absl.testing import absltest, parameterized

from jigclu.data import webdataset
from jigclu.data.folders import ImageFolder
from jigclu.data.webdataset import WebDatasetImages
from jigclu.system import dry_run
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase
from tests.samples import write_image_tree


class WebDatasetImagesTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.folder / "shards"
        self.root.mkdir()
        write_image_tree(self.folder / "tree")
        self.source = ImageFolder(str(self.folder / "tree"), "train")
        self.write("b.tar", range(4, 7))
        self.write("a.tar", range(4))

    def write(self, name: str, indices: range, labels: bool = True) -> None:
        """Writes images of the tree as samples of a label, an image and another file."""
        with tarfile.open(self.root / name, "w") as tar:
            for index in indices:
                assert self.source.labels is not None
                files = {"json": b"{}"}
                if labels:
                    files["cls"] = str(self.source.labels[index]).encode()
                files["png"] = Path(self.source.name(index)).read_bytes()
                for suffix, data in files.items():
                    member = tarfile.TarInfo(f"./some.folder/{index:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

    def open(self) -> WebDatasetImages:
        return WebDatasetImages(str(self.root), "*.tar", str(self.folder / "index"))

    def test_reads_images_and_labels_in_the_order_of_shards(self) -> None:
        images = self.open()
        self.assertLen(images, 7)
        self.assertEqual(images.labels, self.source.labels)
        self.assertEqual(images.classes, ["0", "1"])
        for index in (6, *range(7)):
            self.assertTrue(torch.equal(images.read(index), self.source.read(index)))
        self.assertEqual(images.name(5), f"{self.root}/b.tar image 1")

    def test_pattern_selects_a_split(self) -> None:
        index = str(self.folder / "index")
        self.assertLen(WebDatasetImages(str(self.root), "a*.tar", index), 4)
        self.assertLen(WebDatasetImages(str(self.root), "b*.tar", index), 3)
        with self.assertRaisesRegex(UserError, r"contains no c\*\.tar: expected tar shards"):
            WebDatasetImages(str(self.root), "c*.tar", index)

    def test_rejects_samples_with_two_images(self) -> None:
        with tarfile.open(self.root / "c.tar", "w") as tar:
            for suffix in ("png", "jpg"):
                tar.addfile(tarfile.TarInfo(f"0.{suffix}"), io.BytesIO())
        with self.assertRaisesRegex(UserError, r"c\.tar: 0\.jpg is a second image .* 0\.png"):
            self.open()

    def add(self, contents: dict[str, bytes], name: str = "c.tar") -> None:
        """Writes a third shard."""
        with tarfile.open(self.root / name, "w") as tar:
            for file, data in contents.items():
                member = tarfile.TarInfo(file)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    def open_added(self, contents: dict[str, bytes]) -> WebDatasetImages:
        """Opens a shard that contains these files."""
        self.add(contents)
        return WebDatasetImages(str(self.root), "c.tar", str(self.folder / "index"))

    def test_other_images_of_a_sample_and_files_of_macos_are_not_read(self) -> None:
        images = self.open_added(
            {"._0.png": b"x", "0.mask.png": b"x", "0.png": b"x", "0.cls": b"1", "0.seg.jpg": b"x"}
        )
        self.assertLen(images, 1)
        self.assertEqual(images.labels, [1])

    def test_names_may_contain_dots(self) -> None:
        images = self.open_added(
            {"d/2024.01.a.jpg": b"x", "d/2024.01.a.cls": b"3", "d/2024.01.b.JPEG": b"x"}
            | {"d/2024.01.b.CLS": b"2\n", "d/x.image.png": b"x", "d/x.cls": b"01"}
        )
        self.assertEqual(images.labels, [3, 2, 1])
        self.assertEqual(images.classes, ["0", "1", "2", "3"])

    def test_class_names_and_labels_in_json_are_read(self) -> None:
        images = self.open_added(
            {"0.png": b"x", "0.cls": b"dog\n", "1.png": b"x", "1.json": b'{"label": "cat"}'}
        )
        self.assertEqual((images.classes, images.labels), (["cat", "dog"], [1, 0]))
        images = self.open_added({"0.png": b"x", "0.json": b'{"label": 2, "caption": "a cat"}'})
        self.assertEqual((images.classes, images.labels), (["0", "1", "2"], [2]))
        for text in (b'{"url": "?"}', b'{"label": null}'):
            self.assertIsNone(self.open_added({"0.png": b"x", "0.json": text}).labels)
        self.assertIsNone(self.open_added({"0.png": b"x", "0.cls": b"-1"}).labels)
        # A digit of which Python makes no number.
        images = self.open_added({"0.png": b"x", "0.cls": "²".encode()})
        self.assertEqual((images.classes, images.labels), (["²"], [0]))

    @parameterized.parameters(
        ({"0.cls": b"3000000000"}, "0.cls contains the class number 3000000000: expected class"),
        ({"0.cls": b" "}, "0.cls contains '': expected one class number or name"),
        ({"0.json": b"{"}, "0.json is not JSON"),
        (
            {"0.json": b'{"label": [1, 2]}'},
            r"0.json has the label \[1, 2\]: expected a class number",
        ),
        (
            {"0.json": b'{"label": 2.5}'},
            "0.json has the label 2.5: expected a class number or name",
        ),
    )
    def test_rejects_invalid_labels(self, label: dict[str, bytes], message: str) -> None:
        with self.assertRaisesRegex(UserError, f"c.tar: {message}"):
            self.open_added({"0.png": b"x"} | label)

    def test_one_shard_may_be_empty_but_not_all(self) -> None:
        self.add({})
        self.assertLen(self.open(), 7)
        with self.assertRaisesRegex(UserError, "the shards c.tar are empty"):
            self.open_added({})
        (self.root / "c.tar").write_bytes(b"")
        with self.assertRaisesRegex(UserError, "c.tar has 0 bytes"):
            self.open()

    def test_rejects_compressed_shards(self) -> None:
        (self.root / "c.tar").write_bytes(gzip.compress((self.root / "b.tar").read_bytes()))
        with self.assertRaisesRegex(UserError, "c.tar is compressed with gzip: decompress it"):
            self.open()
        os.rename(self.root / "c.tar", self.root / "c.tar.gz")
        with self.assertRaisesRegex(UserError, "no c.tar: .*; c.tar.gz is compressed: decompress"):
            WebDatasetImages(str(self.root), "c.tar", str(self.folder / "index"))

    def test_rejects_links(self) -> None:
        with tarfile.open(self.root / "c.tar", "w") as tar:
            member = tarfile.TarInfo("0.png")
            member.type, member.linkname = tarfile.LNKTYPE, "1.png"
            tar.addfile(member)
        with self.assertRaisesRegex(UserError, "c.tar: 0.png is a link: expected a file"):
            self.open()

    def test_shards_are_indexed_once(self) -> None:
        first = self.open()
        with mock.patch.object(webdataset, "_index_shard") as index_shard:
            second = self.open()
        index_shard.assert_not_called()
        self.assertEqual(first.fingerprint(True), second.fingerprint(True))
        self.assertTrue(torch.equal(first.read(3), second.read(3)))

    def test_changed_shards_are_indexed_again(self) -> None:
        before = self.open()
        self.write("b.tar", range(5, 7))
        os.utime(self.root / "b.tar", ns=(1, 1))
        after = self.open()
        self.assertLen(after, 6)
        self.assertTrue(torch.equal(after.read(4), self.source.read(5)))
        self.assertNotEqual(before.fingerprint(False), after.fingerprint(False))

    def test_shards_without_labels_are_unlabeled(self) -> None:
        self.write("a.tar", range(4), labels=False)
        self.write("b.tar", range(4, 7), labels=False)
        images = self.open()
        self.assertIsNone(images.labels)
        self.assertEqual(images.classes, [])

    def test_rejects_shards_with_some_labels_missing(self) -> None:
        self.write("b.tar", range(4, 7), labels=False)
        with self.assertRaisesRegex(UserError, "3 of 7 images have no .cls"):
            self.open()

    def test_rejects_truncated_shards(self) -> None:
        path = self.root / "b.tar"
        path.write_bytes(path.read_bytes()[:3000])
        with self.assertRaisesRegex(UserError, "b.tar is corrupt"):
            self.open()

    def test_rejects_files_that_are_not_tar(self) -> None:
        (self.root / "b.tar").write_bytes(b"nothing" * 200)
        with self.assertRaisesRegex(UserError, "b.tar is corrupt or not an uncompressed tar"):
            self.open()

    def test_rejects_shards_without_images(self) -> None:
        with tarfile.open(self.root / "c.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("readme.txt"))
        with self.assertRaisesRegex(UserError, "c.tar contains no images"):
            self.open()

    def test_rejects_folders_without_shards(self) -> None:
        with self.assertRaisesRegex(UserError, "contains no ..tar"):
            WebDatasetImages(str(self.folder), "*.tar", str(self.folder / "index"))

    def test_dry_run_saves_no_index(self) -> None:
        with dry_run.dry_run():
            self.assertLen(self.open(), 7)
        self.assertFalse((self.folder / "index").exists())

    def test_rejects_an_index_folder_that_cannot_be_written(self) -> None:
        (self.folder / "index").write_text("a file")
        with self.assertRaisesRegex(UserError, "index_folder .* cannot be written"):
            self.open()


if __name__ == "__main__":
    absltest.main()
