"""Tests of jigclu.data.lists."""

import os

from absl.testing import absltest

from jigclu.data import lists
from jigclu.system.errors import UserError
from tests.data.files_case import FilesTestCase


class ImageListTest(FilesTestCase):
    def read_list(self, text: str) -> lists.ImageList:
        return lists.ImageList(self.create_tempfile(content=text).full_path, self.root)

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

    def test_reads_the_lines_of_find_windows_and_other_trainers(self) -> None:
        self.add("n01/a.png", "n01/b.png", "n01/c.png", "n02/d 1.png", "n02/e,2.png", "#f.png")
        source = self.read_list(
            "# path, label\n  # indented\n"
            "./n01/a.png\nn01\\b.png\nn01/c.png 0\nn02/d 1.png,12\nn02/e,2.png\n"
        )
        self.assertEqual(
            self.names(source),
            ["n01/a.png", "n01/b.png", "n01/c.png", "n02/d 1.png", "n02/e,2.png"],
        )
        self.assertEmpty(source.notes)

    def test_an_image_counts_once(self) -> None:
        self.add("a.png", "b/c.png")
        os.symlink("a.png", os.path.join(self.root, "link.png"))
        source = self.read_list("a.png\n./a.png\nb/../link.png\na.png 3\nb/c.png\n")
        self.assertEqual(self.names(source), ["a.png", "b/c.png"])
        self.assertRegex(source.notes[0], "^3 lines of .* repeat an image")

    def test_rejects_files_that_are_not_images(self) -> None:
        self.add("a.png")
        with open(os.path.join(self.root, "notes.txt"), "w") as file:
            file.write("notes")
        with self.assertRaisesRegex(UserError, "lists notes.txt, which is not an image"):
            self.read_list("a.png\nnotes.txt\n")

    def test_file_names_need_not_be_utf8(self) -> None:
        name = os.fsdecode(b"caf\xe9.png")
        self.add(name)
        path = os.path.join(self.root, "list.txt")
        with open(path, "wb") as file:
            file.write(b"./caf\xe9.png\n")
        self.assertEqual(self.names(lists.ImageList(path, self.root)), [name])

    def test_rejects_an_empty_or_missing_list(self) -> None:
        with self.assertRaisesRegex(UserError, "lists no images"):
            self.read_list("\n \n")
        with self.assertRaisesRegex(UserError, "is not a file"):
            lists.ImageList(os.path.join(self.root, "missing.txt"), self.root)

    def test_accepts_a_byte_order_mark_and_rejects_other_encodings(self) -> None:
        self.add("ä.png")
        self.assertLen(self.read_list("\ufeffä.png\n"), 1)
        path = os.path.join(self.root, "list.txt")
        with open(path, "wb") as file:
            file.write("ä.png".encode("latin-1"))
        with self.assertRaisesRegex(UserError, "list.txt is not UTF-8 text"):
            lists.ImageList(path, self.root)


if __name__ == "__main__":
    absltest.main()
