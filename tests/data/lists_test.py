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
