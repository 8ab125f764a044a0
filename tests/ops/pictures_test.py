"""The picture of montages shows the patches that the network gets."""

import dataclasses

import torch
from absl.testing import absltest

from jigclu.ops import augment
from jigclu.training.pictures import confusion_picture, montage_picture
from tests.samples import AUGMENTATION, SIZE, inputs_of

PADDING = 2  # Pixels between the montages, of torchvision's grid.


class PicturesTest(absltest.TestCase):
    def test_undoes_the_normalization(self) -> None:
        plain = dataclasses.replace(
            AUGMENTATION,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
            flip_probability=0.0,
        )
        inputs = inputs_of(0)
        rows = augment.draw_augmentation(plain, 0, 0, len(inputs.slots))
        picture = montage_picture(inputs._replace(augmentation=rows), plain, 2)
        side = 2 * SIZE
        self.assertEqual(picture.dtype, torch.uint8)
        self.assertEqual(picture.shape, (3, side + 2 * PADDING, 4 * (side + PADDING) + PADDING))
        first = picture[:, PADDING : PADDING + side, PADDING : PADDING + side]
        expected = torch.cat(
            [torch.cat([*inputs.slots[:2]], 2), torch.cat([*inputs.slots[2:4]], 2)], 1
        )
        self.assertLessEqual((first.int() - expected.int()).abs().max(), 1)
        self.assertTrue((picture[:, :PADDING] == 255).all())

    def test_shows_the_augmentation(self) -> None:
        inputs = inputs_of(0)
        gray = inputs.augmentation._replace(
            grayscale=torch.ones_like(inputs.augmentation.grayscale)
        )
        picture = montage_picture(inputs._replace(augmentation=gray), AUGMENTATION, 2).int()
        self.assertLessEqual((picture[0] - picture[2]).abs().max(), 1)

    def test_confusion(self) -> None:
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


if __name__ == "__main__":
    absltest.main()
