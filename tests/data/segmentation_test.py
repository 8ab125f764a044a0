"""Sources of images with masks, their checks, and the crops of training images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data.segmentation import (
    MaskedCrops,
    MaskedDataset,
    SegmentationFolders,
    VocSegmentation,
    check_masks,
    read_pair,
)
from jigclu.ops.segmentation import IGNORED
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase

CLASSES = ("black", "red", "green")


def write_pair(root: Path, name: str, values: np.ndarray) -> None:
    """Writes a mask with 9 for ignored pixels, and an image whose gray value is 20 * class."""
    for folder, pixels in (("images", np.uint8(20) * values), ("masks", values)):
        path = root / folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 1, 2, 9], (height, width)).astype(np.uint8)


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def write_pixels(path: Path, value: int) -> None:
    """Gives all pixels of a mask one value."""
    with Image.open(path) as image:
        size = image.size
    Image.new("L", size, value).save(path)


class FoldersTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.masks = {"a": random_mask(0, 20, 30), "deep/b": random_mask(1, 24, 16)}
        for name, mask in self.masks.items():
            write_pair(self.folder, name, mask)

    def source(self, ignore_value: int | None = 9) -> SegmentationFolders:
        return SegmentationFolders(str(self.folder), "images", "masks", CLASSES, ignore_value)

    def test_masks_belong_to_the_image_of_the_same_name(self) -> None:
        source = self.source()
        self.assertLen(source, 2)
        self.assertEqual((source.classes, source.labels), ([], None))
        for index, mask in enumerate(self.masks.values()):
            image, found = read_pair(source, index)
            expected = np.where(mask == 9, IGNORED, mask)
            np.testing.assert_array_equal(found.numpy(), expected)
            np.testing.assert_array_equal(image[1].numpy(), 20 * mask)
        check_masks(source, "source")

    def test_images_of_one_color_are_counted(self) -> None:
        Image.new("RGB", (30, 20), (7, 8, 9)).save(self.folder / "images" / "a.png")
        with self.assertLogs(level="WARNING") as logs:
            check_masks(self.source(), "source")
        self.assertRegex(logs.output[0], "1 of 2 images have only one color, such as .*/a.png")

    def test_reads_palettes_black_and_white_and_16_bits(self) -> None:
        path = self.folder / "masks" / "a.png"
        values = self.masks["a"] % 2
        gray = Image.fromarray(values)
        palette = gray.copy().convert("P")
        palette.putdata(values.ravel().tolist())
        palette.putpalette([0, 0, 0, 250, 0, 0])
        for image in (palette, Image.fromarray(values > 0), Image.fromarray(values.astype("<u2"))):
            image.save(path)
            np.testing.assert_array_equal(self.source().mask(0).numpy(), values, image.mode)

    def test_classes_may_be_a_number(self) -> None:
        source = SegmentationFolders(str(self.folder), "images", "masks", 3, 9)
        self.assertEqual(source.pixel_classes, ["0", "1", "2"])

    def test_fingerprint_depends_on_masks_and_classes(self) -> None:
        first = self.source().fingerprint(deep=False)
        self.assertEqual(self.source().fingerprint(deep=False), first)
        self.assertNotEqual(self.source(8).fingerprint(deep=False), first)

    @parameterized.parameters(
        (
            lambda f: (f / "masks/a.png").unlink(),
            "masks: 1 of the 2 images have no mask.*masks/a.png",
        ),
        (lambda f: (f / "masks").rename(f / "other"), "masks: .*masks is not a folder"),
        (lambda f: (f / "images").rename(f / "other"), "images: .*images is not a folder"),
        (
            lambda f: [path.unlink() for path in (f / "images").rglob("*.png")],
            "images contains no images",
        ),
        (
            lambda f: Image.new("RGB", (30, 20)).save(f / "images/a.jpg"),
            "images contains a twice",
        ),
    )
    def test_rejects_files_that_do_not_match(
        self, damage: Callable[[Path], object], message: str
    ) -> None:
        damage(self.folder)
        with self.assertRaisesRegex(UserError, message):
            self.source()

    @parameterized.parameters(
        (
            lambda f: Image.new("L", (30, 21)).save(f / "masks/a.png"),
            "images/a.png has 30x20.*30x21",
        ),
        (
            lambda f: Image.new("RGB", (30, 20)).save(f / "masks/a.png"),
            "masks/a.png is an image of mode RGB",
        ),
        (
            lambda f: Image.new("L", (30, 20), 3).save(f / "masks/a.png"),
            "masks/a.png has the value 3; expected class numbers from 0 to 2",
        ),
        (lambda f: corrupt(f / "masks/a.png"), "masks/a.png is unreadable"),
        (lambda f: corrupt(f / "images/a.png"), "images/a.png is unreadable"),
        (
            lambda f: list(map(partial(write_pixels, value=9), (f / "masks").rglob("*.png"))),
            "every pixel of every mask is ignored",
        ),
    )
    def test_check_names_the_file_and_the_problem(
        self, damage: Callable[[Path], object], message: str
    ) -> None:
        damage(self.folder)
        with self.assertRaisesRegex(UserError, f"^val: .*{message}"):
            check_masks(self.source(), "val")

    def test_ignored_value_is_no_class_unless_it_is_bound(self) -> None:
        with self.assertRaisesRegex(UserError, "has the value 9"):
            self.source(None).mask(0)

    @parameterized.parameters(
        (1, 9, "classes is 1"),
        (256, 9, "classes is 256"),
        (("a", "b", "a"), 9, "classes contains a twice"),
        (3, 256, "ignore_value is 256"),
    )
    def test_rejects_settings_out_of_range(
        self, classes: tuple[str, ...] | int, ignore_value: int, message: str
    ) -> None:
        with self.assertRaisesRegex(UserError, message):
            SegmentationFolders(str(self.folder), "images", "masks", classes, ignore_value)


class VocTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("x", "y"):
            for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
                path = self.folder / folder / f"{name}.{ending}"
                path.parent.mkdir(exist_ok=True)
                Image.new("L", (12, 10), 20 if ending == "png" else 0).save(path)
        self.list("train", "y\nx\n")

    def list(self, split: str, text: str) -> None:
        path = self.folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def test_reads_the_images_of_the_list_with_21_classes(self) -> None:
        source = VocSegmentation(str(self.folder), "train")
        self.assertLen(source, 2)
        self.assertEndsWith(source.name(0), "JPEGImages/y.jpg")
        self.assertLen(source.pixel_classes, 21)
        self.assertEqual(source.pixel_classes[:2], ["background", "aeroplane"])
        self.assertEqual(source.pixel_classes[20], "tvmonitor")
        self.assertTrue((source.mask(0) == 20).all())
        border = Image.new("P", (12, 10), 255)
        border.putpalette([*range(256)] * 3)
        border.save(self.folder / "SegmentationClass/y.png")
        self.assertTrue((source.mask(0) == IGNORED).all())

    def test_rejects_lists_that_do_not_match_the_files(self) -> None:
        self.list("twice", "x\ny\nx\n")
        self.list("more", "x\nz\n")
        for split, message in (
            ("twice", "twice.txt contains x twice"),
            ("more", "JPEGImages/z.jpg does not exist, but .*more.txt lists it"),
            ("val", "split: .*val.txt is not a file"),
        ):
            with self.assertRaisesRegex(UserError, message):
                VocSegmentation(str(self.folder), split)
        with self.assertRaisesRegex(UserError, "root: .*ImageSets/Segmentation is not a folder"):
            VocSegmentation(str(self.folder / "JPEGImages"), "train")


class CropsTest(FolderTestCase):
    def crops(self, **changes: object) -> MaskedCrops:
        source = SegmentationFolders(str(self.folder), "images", "masks", 3, None)
        settings = {"seed": 3, "size": 32, "scale": (0.5, 2.0), "flip_probability": 0.5} | changes
        return MaskedCrops(source=source, **settings)  # type: ignore[arg-type]

    def setUp(self) -> None:
        super().setUp()
        # Large areas, whose colors resizing only mixes along the borders.
        left = np.repeat([0, 1, 2], 16)[None].repeat(40, 0)
        write_pair(self.folder, "a", left)

    def test_image_and_mask_are_cropped_alike(self) -> None:
        crops = self.crops()
        for epoch in range(20):
            image, mask = crops[(epoch, 0)]
            self.assertEqual((image.shape, mask.shape), ((3, 32, 32), (32, 32)))
            self.assertEqual((image.dtype, mask.dtype), (torch.uint8, torch.uint8))
            self.assertContainsSubset(mask.unique().tolist(), [0, 1, 2, IGNORED])
            self.assertTrue((image[:, mask == IGNORED] == 0).all())
            inside = mask != IGNORED
            off = (image[0].int() - 20 * mask.int()).abs()[inside]
            self.assertLess((off > 2).float().mean(), 0.2)
            self.assertLess(off.float().mean(), 3)

    def test_draws_depend_only_on_seed_epoch_and_index(self) -> None:
        first, again = self.crops()[(2, 0)], self.crops()[(2, 0)]
        self.assertTrue(torch.equal(first.image, again.image))
        self.assertTrue(torch.equal(first.mask, again.mask))
        others = [self.crops()[(1, 0)].mask, self.crops(seed=4)[(2, 0)].mask]
        self.assertFalse(any(torch.equal(first.mask, other) for other in others))

    def test_draws_leave_the_global_generator_alone(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self.crops()[(0, 0)]
        self.assertTrue(torch.equal(torch.get_rng_state(), before))

    def test_flip_and_padding_by_hand(self) -> None:
        _, mask = self.crops(size=48, scale=(1.0, 1.0), flip_probability=1.0)[(0, 0)]
        expected = np.repeat([2, 1, 0], 16)[None].repeat(40, 0)
        np.testing.assert_array_equal(mask[:40].numpy(), expected)
        self.assertTrue((mask[40:] == IGNORED).all())

    def test_evaluation_resizes_only_the_image(self) -> None:
        source = SegmentationFolders(str(self.folder), "images", "masks", 3, None)
        image, mask = MaskedDataset(source=source, resize=20)[0]
        self.assertEqual((image.shape, mask.shape), ((3, 20, 24), (40, 48)))
        image, _ = MaskedDataset(source=source, resize=None)[0]
        self.assertEqual(image.shape, (3, 40, 48))

    def test_rejects_settings_out_of_range(self) -> None:
        for changes, message in (
            ({"size": 0}, "train_size is 0"),
            ({"scale": (0.0, 1.0)}, "scale is"),
            ({"scale": (2.0, 1.0)}, "scale is"),
            ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ):
            with self.assertRaisesRegex(UserError, message):
                self.crops(**changes)


if __name__ == "__main__":
    absltest.main()
