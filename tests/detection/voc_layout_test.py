"""Tests of jigclu.detection.voc_layout."""

import re
from pathlib import Path

from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.detection import voc_layout
from jigclu.detection.datasets import Summary, Use
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase

_XML = """<annotation><size><width>40</width><height>30</height></size>
<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>
<difficult>0</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>
<ymax>{3}</ymax></bndbox></object></annotation>"""


class VocTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "ImageSets/Main/train.txt").write_text("a\nb \n\n", encoding="utf-8")
        for name in ("a", "b"):
            Image.new("RGB", (40, 30)).save(self.folder / f"JPEGImages/{name}.jpg")
            self.annotate(name, 1, 1, 40, 30)

    def annotate(self, image: str, *edges: float, name: str = "cat") -> None:
        path = self.folder / f"Annotations/{image}.xml"
        path.write_text(_XML.format(*edges, name=name), encoding="utf-8")

    def check(self, *, is_evaluated: bool = False, mask_format: str | None = None) -> Summary:
        use = Use(not is_evaluated, is_evaluated, mask_format)
        return voc_layout.check("mine", self.folder, "train", ("cat", "dog"), use)

    def test_summary_counts_images_and_boxes(self) -> None:
        self.assertEqual(self.check(), Summary(2, 2, ("cat", "dog")))

    def test_accepts_a_box_of_one_pixel_and_counting_from_0(self) -> None:
        self.annotate("a", 5, 5, 5, 5)
        self.annotate("b", 0, 0, 40, 30)
        self.assertEqual(self.check().boxes, 2)

    @parameterized.parameters((1, 1, 42, 30), (1, 1, 40, 32), (-1, 1, 5, 5))
    def test_rejects_a_box_that_exceeds_its_image(self, *edges: float) -> None:
        self.annotate("b", *edges)
        with self.assertRaisesRegex(UserError, r"of b.xml, 40x30 pixels, exceeds its image"):
            self.check()

    @parameterized.parameters((7, 1, 5, 5), (1, 9, 5, 5))
    def test_message_names_swapped_corners(self, *edges: float) -> None:
        self.annotate("b", *edges)
        with self.assertRaisesRegex(UserError, r"of b.xml, .*, has swapped corners: xmin > xmax"):
            self.check()

    def test_spaces_around_class_names_do_not_matter(self) -> None:
        self.annotate("b", 1, 1, 5, 5, name=" dog\n")
        self.assertEqual(self.check(is_evaluated=True).boxes, 2)

    def test_voc_has_no_masks(self) -> None:
        with self.assertRaisesRegex(UserError, "mine has no masks, but MODEL.MASK_ON is True"):
            self.check(mask_format="polygon")

    def test_summary_counts_images_without_objects(self) -> None:
        path = self.folder / "Annotations/b.xml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub("(?s)<object>.*</object>", "", text), encoding="utf-8")
        self.assertEqual(self.check().empty_images, 1)

    @parameterized.parameters("pose", "truncated", "difficult")
    def test_some_fields_may_be_missing(self, flag: str) -> None:
        path = self.folder / "Annotations/b.xml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(f"<{flag}>.*?</{flag}>", "", text), encoding="utf-8")
        self.assertEqual(self.check(is_evaluated=True).boxes, 2)

    def test_coordinates_need_not_be_whole(self) -> None:
        self.annotate("b", 1.5, 1, 40, 30)
        self.assertEqual(self.check(is_evaluated=True).boxes, 2)

    @parameterized.parameters("", "a -1\nb 1\n")
    def test_rejects_lists_other_than_one_image_per_line(self, text: str) -> None:
        (self.folder / "ImageSets/Main/train.txt").write_text(text, encoding="utf-8")
        with self.assertRaisesRegex(UserError, "must name at least one image, one per line"):
            self.check()

    def test_one_image_is_enough(self) -> None:
        (self.folder / "ImageSets/Main/train.txt").write_text("a", encoding="utf-8")
        self.assertEqual(self.check().images, 1)

    def test_images_may_be_in_subfolders(self) -> None:
        for name in ("Annotations/a.xml", "JPEGImages/b.jpg", "Annotations/b.xml"):
            path = self.folder / name
            path.parent.joinpath("sub").mkdir(exist_ok=True)
            path.rename(path.parent / "sub" / path.name)
        (self.folder / "ImageSets/Main/train.txt").write_text("sub/b", encoding="utf-8")
        self.assertEqual(self.check().images, 1)
        (image,) = voc_layout.read("mine", self.folder, "train")
        self.assertEqual(image.name, "sub/b")

    def test_rejects_boxes_that_are_all_flat(self) -> None:
        self.annotate("a", 5, 5, 4, 9)
        self.assertEqual(self.check().flat_boxes, 1)
        self.annotate("b", 5, 5, 4, 9)
        with self.assertRaisesRegex(UserError, "has no area .and 1 more"):
            self.check()

    def test_rejects_an_image_that_is_listed_twice(self) -> None:
        (self.folder / "ImageSets/Main/train.txt").write_text("a\nb\na\n", encoding="utf-8")
        with self.assertRaisesRegex(UserError, "mine: a is listed twice in .*train.txt"):
            self.check()

    def test_rejects_a_class_that_is_named_twice(self) -> None:
        with self.assertRaisesRegex(UserError, "mine: cat is the name of two classes"):
            voc_layout.check("mine", self.folder, "train", ("cat", "dog", "cat"), Use(True, False))

    def test_evaluation_needs_objects_that_are_not_difficult(self) -> None:
        for name in ("a", "b"):
            path = self.folder / f"Annotations/{name}.xml"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("<difficult>0", "<difficult>1"), encoding="utf-8")
        self.assertEqual(self.check().boxes, 2)
        with self.assertRaisesRegex(UserError, "mine: all 2 boxes are difficult"):
            self.check(is_evaluated=True)

    def test_rejects_an_image_of_another_size(self) -> None:
        Image.new("RGB", (40, 31)).save(self.folder / "JPEGImages/b.jpg")
        with self.assertRaisesRegex(
            UserError, r"b.jpg .40x31, annotated as 40x30 pixels. has another size"
        ):
            self.check()

    def test_rejects_a_data_set_without_boxes(self) -> None:
        for name in ("a", "b"):
            path = self.folder / f"Annotations/{name}.xml"
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub("(?s)<object>.*</object>", "", text), encoding="utf-8")
        with self.assertRaisesRegex(UserError, "has 2 images, 2 classes and 0 boxes"):
            self.check()

    def test_rejects_an_unknown_class(self) -> None:
        self.annotate("b", 1, 1, 2, 2, name="cow")
        with self.assertRaisesRegex(UserError, "'cow' in b.xml is not one of the classes cat, dog"):
            self.check()

    @parameterized.parameters("JPEGImages/b.jpg", "Annotations/b.xml")
    def test_rejects_a_missing_file(self, name: str) -> None:
        (self.folder / name).unlink()
        with self.assertRaisesRegex(UserError, f"mine: {Path(name).name} is not in "):
            self.check()

    @parameterized.parameters(
        "<annotation>",
        "<annotation/>",
        "<?xml version='1.0' encoding='none'?><annotation/>",
        _XML.format("x", 1, 2, 3, name="c"),
    )
    def test_rejects_a_corrupt_annotation(self, text: str) -> None:
        (self.folder / "Annotations/b.xml").write_text(text, encoding="utf-8")
        with self.assertRaisesRegex(UserError, r"b.xml is not|'c' in b.xml is not one"):
            self.check()

    def test_rejects_an_unknown_split(self) -> None:
        with self.assertRaisesRegex(UserError, "val.txt cannot be read"):
            voc_layout.check("mine", self.folder, "val", ("cat",), Use(True, False))

    def test_rejects_an_empty_list_of_classes(self) -> None:
        with self.assertRaisesRegex(UserError, "has 2 images, 0 classes and 2 boxes"):
            voc_layout.check("mine", self.folder, "train", (), Use(True, False))


if __name__ == "__main__":
    absltest.main()
