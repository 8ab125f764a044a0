"""Tests of jigclu.detection.coco_layout."""

import json
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image

from jigclu.detection import coco_layout
from jigclu.detection.datasets import Summary, Use
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase


class CocoTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        Image.new("RGB", (40, 30)).save(self.folder / "a.jpg")
        self.contents: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}],
            "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 9, "bbox": [0, 0, 40, 30]},
                {"id": 2, "image_id": 7, "category_id": 3, "bbox": [-0.5, 5, 40.6, 2]},
            ],
        }

    def check(
        self,
        expected: dict[int, str] | None = None,
        *,
        is_trained: bool = True,
        is_evaluated: bool = False,
        mask_format: str | None = None,
        decodes_images: bool = True,
    ) -> Summary:
        path = self.folder / "boxes.json"
        path.write_text(json.dumps(self.contents), encoding="utf-8")
        use = Use(is_trained, is_evaluated, mask_format, decodes_images)
        return coco_layout.check("mine", self.folder, path, use, expected)

    def test_classes_are_ordered_by_number(self) -> None:
        self.assertEqual(self.check(), Summary(1, 2, ("cat", "dog")))
        names = coco_layout.read_classes("mine", self.folder / "boxes.json")
        self.assertEqual(names, ("cat", "dog"))

    @parameterized.parameters([[-2, 0, 5, 5]], [[0, -2, 5, 5]], [[36, 0, 6, 5]], [[0, 26, 5, 6]])
    def test_rejects_a_box_that_exceeds_its_image(self, box: list[float]) -> None:
        self.contents["annotations"][1]["bbox"] = box
        with self.assertRaisesRegex(UserError, r"mine: box \[.*\] of a.jpg, 40x30 pixels, exceeds"):
            self.check()

    @parameterized.parameters(
        ([0, 0, float("nan"), 1], "is not finite"),
        ([0, float("inf"), 1, 1], "is not finite"),
        ([5, 5, -1, 3], "has a negative width or height"),
        ([5, 5, 1, -3], "has a negative width or height"),
    )
    def test_message_names_what_is_wrong_with_a_box(self, box: list[float], message: str) -> None:
        self.contents["annotations"][1]["bbox"] = box
        with self.assertRaisesRegex(UserError, rf"mine: box \[.*\] of a.jpg, 40x30 .*, {message}"):
            self.check()

    def test_evaluation_needs_boxes_with_an_area(self) -> None:
        for annotation in self.contents["annotations"]:
            annotation |= {"area": 5.5, "iscrowd": 0}
        self.contents["annotations"][1]["bbox"] = [5, 5, 4, 0]
        summary = self.check()
        self.assertEqual(summary.flat_boxes, 1)
        self.assertIn(
            "1 images, 2 boxes; training leaves out boxes without area (1)",
            summary.describe(is_trained=True, keeps_empty_images=False),
        )
        with self.assertRaisesRegex(UserError, r"mine: box \[5, 5, 4, 0\] .* has no area"):
            self.check(is_evaluated=True)
        # Known data sets are evaluated as published.
        self.check({3: "cat", 9: "dog"}, is_evaluated=True)

    def test_summary_counts_what_training_leaves_out(self) -> None:
        for number in range(8, 12):
            Image.new("RGB", (40, 30)).save(self.folder / f"{number}.png")
            self.contents["images"].append(
                {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
            )
        crowd = {"id": 3, "image_id": 8, "category_id": 3, "bbox": [1, 1, 2, 2], "iscrowd": 1}
        self.contents["annotations"].append(crowd)
        summary = self.check()
        self.assertEqual((summary.empty_images, summary.crowds, summary.flat_boxes), (4, 1, 0))
        for keeps, text in (
            (False, "5 images, 3 boxes; training leaves out images without boxes (4), crowds (1)"),
            (True, "5 images, 3 boxes; training leaves out crowds (1)"),
        ):
            self.assertEqual(summary.describe(is_trained=True, keeps_empty_images=keeps), text)
        self.assertEqual(
            summary.describe(is_trained=False, keeps_empty_images=False), "5 images, 3 boxes"
        )

    def test_rejects_boxes_that_are_all_flat(self) -> None:
        for annotation in self.contents["annotations"]:
            annotation["bbox"] = [5, 5, 0, 4]
        with self.assertRaisesRegex(UserError, r"mine: box \[5, 5, 0, 4\] .* has no area .and 1 m"):
            self.check()

    @parameterized.parameters(-1, float("nan"), 1e11)
    def test_evaluation_rejects_areas_that_pycocotools_ignores(self, area: float) -> None:
        for annotation in self.contents["annotations"]:
            annotation |= {"area": 0, "iscrowd": 0}
        self.check(is_evaluated=True)
        self.contents["annotations"][1]["area"] = area
        self.check()
        with self.assertRaisesRegex(UserError, r"area .* of annotation 2 in .* not in \[0, 1e\+10"):
            self.check(is_evaluated=True)

    def test_rejects_image_ids_of_mixed_types(self) -> None:
        self.contents["images"].append({"id": "8", "file_name": "b.jpg", "width": 4, "height": 3})
        with self.assertRaisesRegex(UserError, "the ids of images in .* are numbers and texts"):
            self.check()

    @parameterized.parameters(True, False)
    def test_rejects_data_with_only_crowds(self, is_trained: bool) -> None:
        for annotation in self.contents["annotations"]:
            annotation |= {"area": 5.5, "iscrowd": 1}
        stage = "training" if is_trained else "evaluation"
        with self.assertRaisesRegex(UserError, f"all 2 boxes are crowds, which {stage} ignores"):
            self.check(is_trained=is_trained, is_evaluated=not is_trained)

    @parameterized.parameters(
        ([1, 2, 3, 4, 5, 6], "is not a list of polygons"),
        ([[1, 2, 3, 4]], "has a polygon without three points"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], "has a polygon without three points"),
        ([[1, 2, 3, 4, 5, "6"]], "has a coordinate that is not a finite number"),
        ({"counts": [1200]}, r"is a run-length encoding without the size \[30, 40\]"),
        ({"counts": [1200], "size": [40, 30]}, "is a run-length encoding without the size"),
        ({"size": [30, 40]}, "is a run-length encoding without counts"),
        ({"counts": [9, 9], "size": [30, 40]}, r"counts do not add up to the size \[30, 40\]"),
        ("mask", "is not a list of polygons"),
    )
    def test_rejects_invalid_masks(self, mask: object, message: str) -> None:
        self.contents["annotations"][1]["segmentation"] = mask
        with self.assertRaisesRegex(UserError, f"segmentation of annotation 2 in .* {message}"):
            self.check()

    def test_known_data_sets_may_have_short_polygons_besides_others(self) -> None:
        known = {3: "cat", 9: "dog"}
        self.contents["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]
        self.check(known)
        self.contents["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
        with self.assertRaisesRegex(UserError, "has a polygon without three points"):
            self.check(known)

    @parameterized.parameters("polygon", "bitmask")
    def test_detectors_with_masks_need_masks(self, mask_format: str) -> None:
        masks: tuple[dict[str, object], ...] = ({}, {"segmentation": []})
        for mask in masks:
            self.contents["annotations"][1] |= mask
            self.contents["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
            self.check()
            with self.assertRaisesRegex(
                UserError, "annotation 2 in .* has no segmentation, but MODEL.MASK_ON is True"
            ):
                self.check(mask_format=mask_format)

    def test_evaluation_needs_masks_with_an_area(self) -> None:
        triangle, line = [[1, 2, 3, 4, 5, 9]], [[1, 2, 3, 4, 5, 6]]
        for annotation, mask in zip(self.contents["annotations"], (triangle, line), strict=True):
            annotation |= {"segmentation": mask, "area": 5.5, "iscrowd": 0}
        self.check(mask_format="polygon")
        self.check(is_trained=False, is_evaluated=True)
        with self.assertRaisesRegex(UserError, "segmentation of annotation 2 .* has no area, so"):
            self.check(is_trained=False, is_evaluated=True, mask_format="polygon")

    def test_run_length_encodings_need_bitmasks_only_in_training(self) -> None:
        rle = {"counts": [1200], "size": [30, 40]}
        for annotation in self.contents["annotations"]:
            annotation |= {"segmentation": rle, "area": 5.5, "iscrowd": 0}
        self.check(mask_format="bitmask")
        self.check(is_trained=False, is_evaluated=True, mask_format="polygon")
        with self.assertRaisesRegex(UserError, "annotation 1 .*is polygon: set it to bitmask"):
            self.check(mask_format="polygon")

    @parameterized.parameters(False, True)
    def test_finds_truncated_images_unless_only_headers_are_read(self, progressive: bool) -> None:
        file = self.folder / "a.jpg"
        pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(file, progressive=progressive)
        self.check()
        file.write_bytes(file.read_bytes()[:-80])
        self.check(decodes_images=False)
        with self.assertRaisesRegex(UserError, "a.jpg .*truncated.* in .* cannot be decoded"):
            self.check()

    def test_missing_images_are_named_and_counted(self) -> None:
        for number in (8, 9):
            self.contents["images"].append(
                {"id": number, "file_name": f"{number}.jpg", "width": 4, "height": 3}
            )
        with self.assertRaisesRegex(UserError, r"mine: 8.jpg is not in .*\(and 1 more\)"):
            self.check()

    def test_rejects_an_unlisted_category(self) -> None:
        self.contents["annotations"][0]["category_id"] = 4
        with self.assertRaisesRegex(UserError, "category 4 in a.jpg is not listed in"):
            self.check()

    def test_rejects_an_unlisted_image(self) -> None:
        self.contents["annotations"][0]["image_id"] = 4
        with self.assertRaisesRegex(UserError, "annotation 1 of image 4 is not listed in"):
            self.check()

    def test_rejects_a_data_set_without_images(self) -> None:
        self.contents |= {"images": [], "annotations": []}
        with self.assertRaisesRegex(UserError, "has 0 images, 2 classes and 0 boxes"):
            self.check()

    def test_rejects_a_data_set_without_boxes(self) -> None:
        self.contents["annotations"] = []
        with self.assertRaisesRegex(UserError, "has 1 images, 2 classes and 0 boxes"):
            self.check()

    @parameterized.parameters(
        ("images", "id"),
        ("images", "file_name"),
        ("images", "width"),
        ("categories", "name"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("annotations", "bbox"),
    )
    def test_rejects_records_without_a_field(self, key: str, field: str) -> None:
        record = self.contents[key][-1]
        wrong = (
            rf"mine: {field} of {key}\[{len(self.contents[key]) - 1}\] is missing in .*boxes.json"
        )
        record[field] = {}
        with self.assertRaisesRegex(UserError, wrong):
            self.check()
        del record[field]
        with self.assertRaisesRegex(UserError, wrong):
            self.check()

    @parameterized.parameters("images", "categories", "annotations")
    def test_rejects_invalid_records(self, key: str) -> None:
        self.contents[key].append("a")
        with self.assertRaisesRegex(UserError, rf"of {key}\[\d\] is missing in"):
            self.check()

    @parameterized.parameters("area", "iscrowd")
    def test_evaluation_needs_more_fields_than_training(self, field: str) -> None:
        for annotation in self.contents["annotations"]:
            annotation |= {"area": 5.5, "iscrowd": 0}
        self.check(is_evaluated=True)
        del self.contents["annotations"][1][field]
        self.check()
        with self.assertRaisesRegex(UserError, rf"{field} of annotations\[1\] is missing"):
            self.check(is_evaluated=True)

    @parameterized.parameters(
        ({"bbox": [1, 2, 3]}, r"bbox of annotation 2 in .* is not \[left, top, width, height\]"),
        ({"bbox": [1, 2, 3, "4"]}, "bbox of annotation 2 in "),
        ({"iscrowd": "0"}, "iscrowd of annotation 2 in .* is not a number"),
        ({"keypoints": "abc"}, "keypoints of annotation 2 in .* is not a list of numbers"),
        ({"keypoints": [1, "2", 2]}, "keypoints of annotation 2 in .* is not a list of numbers"),
        ({"ignore": 1}, "annotation 2 in .* is marked ignore, which detectron2 does not support"),
    )
    def test_rejects_annotations_that_detectron2_cannot_read(
        self, change: dict[str, Any], message: str
    ) -> None:
        self.contents["annotations"][1] |= change
        with self.assertRaisesRegex(UserError, message):
            self.check()

    @parameterized.parameters(
        ("annotations", "id", 1, "annotation 1"),
        ("categories", "id", 9, "category 9"),
        ("categories", "name", "dog", "category dog"),
        ("images", "id", 7, "image 7"),
        ("images", "file_name", "a.jpg", "image a.jpg"),
    )
    def test_rejects_records_that_occur_twice(
        self, key: str, field: str, value: object, message: str
    ) -> None:
        self.contents["images"].append({"id": 8, "file_name": "b.jpg", "width": 40, "height": 30})
        self.contents[key][-1][field] = value
        with self.assertRaisesRegex(UserError, f"{message} occurs twice in .*boxes.json"):
            self.check()

    def test_rejects_an_image_of_another_size(self) -> None:
        self.contents["images"][0]["width"] = 50
        with self.assertRaisesRegex(
            UserError, r"a.jpg .40x30, annotated as 50x30 pixels. has another size"
        ):
            self.check()

    def test_image_size_is_that_of_the_upright_image(self) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.new("RGB", (30, 40)).save(self.folder / "a.jpg", exif=exif)
        self.check()

    def test_rejects_images_that_detectron2_would_resize_to_nothing(self) -> None:
        Image.new("RGB", (4000, 1)).save(self.folder / "a.jpg")
        self.contents["images"][0] |= {"width": 4000, "height": 1}
        self.contents["annotations"] = [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 9,
                "bbox": [0, 0, 40, 1],
                "keypoints": [1, 1, 2],
            }
        ]
        with self.assertRaisesRegex(UserError, "a.jpg in .* is too elongated for detectron2"):
            self.check()

    def test_rejects_files_that_are_not_images(self) -> None:
        (self.folder / "a.jpg").write_bytes(b"nothing")
        with self.assertRaisesRegex(UserError, "mine: a.jpg in .* is not an image"):
            self.check()

    @parameterized.parameters(
        [{9: "dog"}],
        [{9: "dog", 3: "cow"}],
        [{9: "dog", 4: "cat"}],
        [{3: "cat", 9: "dog", 5: "cow"}],
    )
    def test_rejects_categories_other_than_the_known_ones(self, expected: dict[int, str]) -> None:
        self.check({3: "cat", 9: "dog"})
        with self.assertRaisesRegex(
            UserError, rf"categories of .*boxes.json are not the {len(expected)} of the known"
        ):
            self.check(expected)

    def test_rejects_another_layout(self) -> None:
        del self.contents["categories"]
        with self.assertRaisesRegex(
            UserError, "lacks lists of categories; expected the layout of COCO"
        ):
            self.check()

    @parameterized.parameters(
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "lacks lists of images, categories, annotations"),
        ('{"images": [], "categories": {}, "annotations": []}', "lacks lists of categories"),
    )
    def test_rejects_other_json(self, text: str, message: str) -> None:
        path = self.folder / "bad.json"
        path.write_text(text, encoding="utf-8")
        with self.assertRaisesRegex(UserError, message):
            coco_layout.check("mine", self.folder, path, Use(True, False))

    def test_rejects_a_missing_file(self) -> None:
        with self.assertRaisesRegex(UserError, "none.json cannot be read .No such file"):
            coco_layout.check("mine", self.folder, self.folder / "none.json", Use(True, False))


if __name__ == "__main__":
    absltest.main()
