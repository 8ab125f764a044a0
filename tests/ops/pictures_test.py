"""Pictures show the pixels and the shares that they are drawn from."""

import torch
from absl.testing import absltest
from torchvision.transforms.functional import pil_to_tensor

from jigclu.ops.pictures import (
    FRAME,
    GAP,
    GREEN,
    HEADER,
    INK,
    LINE,
    MARGIN,
    RED,
    TILE,
    confusion_picture,
    framed,
    image_grid,
    neighbors_picture,
    segmentation_picture,
    voc_colors,
)
from jigclu.ops.segmentation import IGNORED
from tests.samples import eval_transform, noise

PADDING = 2  # Pixels between images, of torchvision's grid.


class PicturesTest(absltest.TestCase):
    def test_images_stand_in_rows_of_four_without_their_normalization(self) -> None:
        images, transform = noise(6, 3, 20, 16), eval_transform(16, 16)
        picture = image_grid(transform.normalize(images), transform.mean, transform.std)
        self.assertEqual(picture.dtype, torch.uint8)
        self.assertEqual(picture.shape, (3, 2 * (20 + PADDING) + PADDING, 4 * 18 + PADDING))
        for number, image in enumerate(images):
            row, column = divmod(number, 4)
            top, left = PADDING + row * (20 + PADDING), PADDING + column * (16 + PADDING)
            shown = picture[:, top : top + 20, left : left + 16]
            self.assertLessEqual((shown.int() - image.int()).abs().max(), 1, number)
        self.assertTrue((picture[:, :PADDING] == 255).all())
        self.assertTrue((picture[:, :, :PADDING] == 255).all())

    def test_values_beyond_black_and_white_are_clamped(self) -> None:
        transform = eval_transform(16, 16)
        images = torch.tensor([-100.0, 100.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
        picture = image_grid(images, transform.mean, transform.std)
        self.assertEqual(picture[:, PADDING, PADDING].tolist(), [0, 0, 0])
        self.assertEqual(picture[:, PADDING, 2 * PADDING + 4].tolist(), [255, 255, 255])

    def test_confusions_are_darker_for_larger_shares(self) -> None:
        confusion = torch.tensor([[4, 0], [75, 25]])
        picture = confusion_picture(confusion)
        self.assertEqual((picture.dtype, picture.shape), (torch.uint8, (3, 400, 400)))
        # Rows are true classes; 1 - sqrt(3/4) and 1 - sqrt(1/4) of 255.
        corners = picture[1][::399, ::399]
        self.assertEqual(corners.tolist(), [[0, 255], [34, 128]])
        many = confusion_picture(torch.eye(1000, dtype=torch.int64))
        self.assertEqual(many.shape, (3, 1000, 1000))

    def test_a_class_without_images_is_blank(self) -> None:
        picture = confusion_picture(torch.tensor([[0, 0], [0, 3]]))
        self.assertEqual(picture[0][::399, ::399].tolist(), [[255, 255], [255, 0]])

    def test_names_stand_beside_rows_and_above_columns(self) -> None:
        confusion = torch.tensor([[3, 1], [0, 4]])
        picture = confusion_picture(confusion, ["cat", "dog"])
        cells = picture[:, -MARGIN - 120 : -MARGIN, -MARGIN - 120 : -MARGIN]
        # 1 - sqrt(share) of 255, beside the percentages in the middle of the cells.
        self.assertEqual(cells[0][5::60, 5::60].tolist(), [[34, 128], [255, 0]])
        room = picture.shape[1] - MARGIN - 120
        self.assertEqual(picture.shape[2], room + 120 + MARGIN)
        ink = 255.0 - picture[0].float()
        for number in range(2):
            band = slice(room + 60 * number, room + 60 * (number + 1))
            left, above = ink[band, : room - 1], ink[: room - 1, band]
            self.assertGreater(left.sum(), 0)
            # The same name, turned by a quarter.
            self.assertAlmostEqual((above.sum() / left.sum()).item(), 1.0, delta=0.1)
            self.assertGreater(above.sum(1).count_nonzero(), above.sum(0).count_nonzero())
        # No number is written where there are no images, but elsewhere.
        self.assertEqual(cells[:, 60:119, 1:59].min(), 255)
        self.assertGreater(cells[0, 61:119, 61:119].max(), 200)

    def test_long_names_are_cut_and_many_names_left_out(self) -> None:
        few = torch.eye(2, dtype=torch.int64)
        longest = confusion_picture(few, ["n" * 20, "b"])
        self.assertLess(confusion_picture(few, ["n" * 500, "b"]).shape[2], longest.shape[2] + 20)
        many = torch.eye(31, dtype=torch.int64)
        picture = confusion_picture(many, [str(number) for number in range(31)])
        self.assertTrue(torch.equal(picture, confusion_picture(many)))
        self.assertEqual(picture.shape, (3, 12 * 31, 12 * 31))

    def test_neighbors_follow_their_query_with_green_or_red_frames(self) -> None:
        levels = torch.arange(8, dtype=torch.uint8).view(2, 4, 1, 1, 1) * 30
        images = levels.expand(2, 4, 3, 10, 10)
        right = torch.tensor([[True, False, True], [False, False, True]])
        picture = neighbors_picture(images[:, 0], images[:, 1:], right)
        self.assertEqual(picture.dtype, torch.uint8)
        self.assertEqual(picture.shape[2], 2 * MARGIN + GAP + 4 * TILE)
        for row in range(2):
            middle = MARGIN + HEADER + row * TILE + TILE // 2
            for column in range(4):
                left = MARGIN + column * TILE + (GAP if column else 0)
                color = INK if column == 0 else GREEN if right[row, column - 1] else RED
                self.assertEqual(picture[:, middle, left + 1].tolist(), [*color])
                level = picture[:, middle, left + TILE // 2].tolist()
                self.assertEqual(level, [30 * (4 * row + column)] * 3)

    def test_frames_surround_the_whole_image(self) -> None:
        image = torch.full((3, 4, 6), 200, dtype=torch.uint8)
        tile = pil_to_tensor(framed(image, 40, [RED, GREEN]))
        row = [tuple(color) for color in tile[:, 20].t().tolist()]
        white, inner = [(255, 255, 255)], [(200, 200, 200)] * (40 - 2 * (1 + FRAME + LINE))
        frame, line = [RED] * FRAME, [GREEN] * LINE
        self.assertEqual(row, [*white, *frame, *line, *inner, *line, *frame, *white])

    def test_segmentation_shows_image_truth_and_prediction_in_vocs_colors(self) -> None:
        image = torch.full((3, 2, 3), 200, dtype=torch.uint8)
        truth = torch.tensor([[0, 1, IGNORED], [2, 2, 2]], dtype=torch.uint8)
        predicted = torch.tensor([[0, 0, 3], [2, 1, 2]])
        picture = segmentation_picture(image, truth, predicted, 4)
        self.assertEqual((picture.dtype, picture.shape), (torch.uint8, (3, 2, 9)))
        self.assertTrue(torch.equal(picture[:, :, :3], image))
        for row in range(2):
            for column in range(3):
                for offset, mask in ((3, truth), (6, predicted)):
                    number = int(mask[row, column])
                    color = (200, 200, 200) if number == IGNORED else voc_colors(4)[number]
                    expected = [int(0.3 * 200 + 0.7 * value) for value in color]
                    shown = picture[:, row, offset + column].tolist()
                    self.assertSequenceAlmostEqual(shown, expected, delta=1)

    def test_colors_are_those_of_voc(self) -> None:
        colors = voc_colors(21)
        self.assertEqual(colors[:4], [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)])
        self.assertEqual(colors[15], (192, 128, 128))  # Person.
        self.assertEqual(colors[20], (0, 64, 128))  # Monitor.
        self.assertLen(set(voc_colors(255)), 255)


if __name__ == "__main__":
    absltest.main()
