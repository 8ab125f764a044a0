"""Tests of jigclu.detection.pictures."""

import itertools

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torch.nn import functional

from jigclu.detection import pictures
from jigclu.detection.pictures import Shape

CLASSES = ("cat", "dog", "a long name of a class")
BLACK = (0, 0, 0)


def _noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def _changed(image: Tensor, picture: Tensor) -> Tensor:
    """Returns bool [height, width]: the pixels that differ."""
    return (image != picture).any(dim=0)


class DrawTest(parameterized.TestCase):
    def test_changes_only_edges_and_a_label_above_the_box(self) -> None:
        image = _noise(480, 640)
        changed = _changed(image, pictures.draw(image, [Shape((100, 200, 300, 400), 0)], CLASSES))
        self.assertTrue(changed[200, 100:300].all())
        self.assertTrue(changed[200:400, 300].all())
        self.assertFalse(changed[202:399, 102:299].any(), "inside of the box")
        label = changed[170:200, 90:310].clone()
        self.assertTrue(label.any())
        self.assertFalse(label[:, 60:].any(), "a label is as wide as its text")
        changed[170:402, 100:302] = False
        self.assertFalse(changed.any(), "outside of box and label")

    @parameterized.parameters(
        ((0, 0, 200, 200), "below"),
        ((0, 0, 200, 479), "beside"),
        ((560, 100, 639, 200), "above"),
        ((440, 0, 639, 479), "beside"),
    )
    def test_label_avoids_the_inside_of_boxes_at_the_edges(
        self, box: tuple[float, float, float, float], where: str
    ) -> None:
        image = _noise(480, 640)
        changed = _changed(image, pictures.draw(image, [Shape(box, 2)], CLASSES))
        left, top, right, bottom = (int(edge) for edge in box)
        self.assertFalse(changed[top + 2 : bottom - 1, left + 2 : right - 1].any())
        changed[top : bottom + 1, left : right + 1] = False
        rows, columns = changed.nonzero(as_tuple=True)
        places = {
            "above": bool((rows < top).all()),
            "below": bool((rows > bottom).all()),
            "beside": bool((columns > right).all() or (columns < left).all()),
        }
        self.assertTrue(places[where], places)

    def test_box_as_large_as_the_image_has_its_label_in_a_corner(self) -> None:
        image = _noise(480, 640)
        changed = _changed(image, pictures.draw(image, [Shape((0, 0, 640, 480), 0)], CLASSES))
        self.assertTrue(changed[2:20, 2:60].any())
        self.assertFalse(changed[20:478, 2:638].any())

    def test_labels_do_not_overlap(self) -> None:
        label, taken = (50.0, 15.0), list[pictures.Edges]()
        for _ in range(7):
            taken.append(pictures._place((200, 200, 300, 300), label, (640, 480), taken))
        self.assertLen(set(taken), 7)
        for first, second in itertools.combinations(taken, 2):
            self.assertFalse(pictures._overlap(first, second), (first, second))

    @parameterized.parameters((128, 96, 480, 360), (100, 2560, 50, 1280), (480, 640, 480, 640))
    def test_small_images_are_enlarged_and_large_ones_reduced(
        self, height: int, width: int, expected_height: int, expected_width: int
    ) -> None:
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        image = (rows + columns).sin().mul(50).add(100).to(torch.uint8).expand(3, -1, -1)
        picture = pictures.draw(image, [], CLASSES)
        self.assertEqual(picture.shape, (3, expected_height, expected_width))
        resized = functional.interpolate(
            image[None].float(), picture.shape[1:], mode="bicubic", antialias=True
        )[0]
        self.assertLess((resized.clamp(0, 255) - picture.float()).abs().max(), 3)

    def test_boxes_have_the_scale_of_the_image(self) -> None:
        image = torch.zeros(3, 120, 160, dtype=torch.uint8)
        changed = pictures.draw(image, [Shape((40, 50, 80, 90), 0)], CLASSES).any(dim=0)
        self.assertTrue(changed[150, 120:240].all())
        self.assertTrue(changed[150:270, 240].all())
        self.assertFalse(changed[160:260, 130:230].any())

    def test_classes_have_different_colors_and_the_best_score_is_on_top(self) -> None:
        image = torch.zeros(3, 480, 640, dtype=torch.uint8)
        box = (100, 100, 200, 200)
        colors = set()
        for first, second in ((0.9, 0.6), (0.6, 0.9)):
            shapes = [Shape(box, 0, first), Shape(box, 1, second)]
            colors.add(tuple(pictures.draw(image, shapes, CLASSES)[:, 200, 150].tolist()))
        self.assertLen(colors, 2)
        self.assertLen({pictures._color(number) for number in range(80)}, 80)

    def test_line_breaks_in_class_names_are_drawn_as_spaces(self) -> None:
        shape = Shape((100, 100, 300, 300), 0, 0.5)
        broken, whole = (pictures.draw(_noise(480, 640), [shape], [n]) for n in ("a\nb", "a b"))
        self.assertTrue(torch.equal(broken, whole))

    def test_objects_that_evaluation_ignores_are_dashed(self) -> None:
        image = torch.zeros(3, 480, 640, dtype=torch.uint8)
        shapes = [Shape((100, 100, 300, 300), 0, is_ignored=True)]
        bottom = pictures.draw(image, shapes, CLASSES)[:, 300, 100:300].any(dim=0)
        self.assertBetween(int(bottom.sum()), 90, 130)
        self.assertGreater(int((bottom[1:] != bottom[:-1]).sum()), 10)

    def test_masks_are_translucent(self) -> None:
        image = torch.full((3, 480, 640), 100, dtype=torch.uint8)
        mask = np.zeros((480, 640), dtype=bool)
        mask[150:200, 150:250] = True
        shape = Shape((100, 100, 300, 300), 0, mask=mask)
        picture = pictures.draw(image, [shape], CLASSES)
        red, green, blue = picture[:, 160, 160].tolist()
        # 70 percent of the image, and 30 percent of the red of the first class.
        self.assertAlmostEqual(red, 0.7 * 100 + 0.3 * 255, delta=2)
        self.assertAlmostEqual(green, 0.7 * 100 + 0.3 * 64, delta=2)
        self.assertEqual(green, blue)
        changed = _changed(image, picture)[110:290, 110:290]
        self.assertEqual(int(changed.sum()), mask.sum())

    def test_image_without_objects_is_unchanged(self) -> None:
        image = _noise(480, 640)
        self.assertTrue(torch.equal(pictures.draw(image, [], ()), image))


class CompareTest(absltest.TestCase):
    def test_shows_annotations_on_the_left_and_likely_predictions_on_the_right(self) -> None:
        image = _noise(480, 640)
        annotated = [Shape((100, 100, 200, 200), 0)]
        predicted = [
            Shape((100, 300, 200, 400), 0, 0.5),
            Shape((300, 300, 400, 400), 1, 0.49),
        ]
        picture = pictures.compare(image, annotated, predicted, CLASSES, 0.5)
        header = picture.shape[1] - 480
        left, right = picture[:, header:, :640], picture[:, header:, -640:]
        self.assertTrue(torch.equal(left, pictures.draw(image, annotated, CLASSES)))
        self.assertTrue(torch.equal(right, pictures.draw(image, predicted[:1], CLASSES)))
        self.assertFalse(_changed(image, right)[:, 290:].any(), "below the least score")
        self.assertFalse(torch.equal(left, right))

    def test_titles_are_above_the_images(self) -> None:
        image = _noise(480, 640)
        picture = pictures.compare(image, [], [], CLASSES, 0.5)
        header = picture[:, : picture.shape[1] - 480]
        for half in (header[:, :, :640], header[:, :, -640:]):
            self.assertEqual(tuple(half.amin(dim=(1, 2)).tolist()), BLACK)
            self.assertTrue((half[:, :, 320:] == 255).all())


if __name__ == "__main__":
    absltest.main()
