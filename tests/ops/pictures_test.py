"""Pictures show the pixels and the shares that they are drawn from."""

import torch
from absl.testing import absltest

from jigclu.ops.pictures import confusion_picture, image_grid, segmentation_picture, voc_colors
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
