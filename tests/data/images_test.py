"""Tests of jigclu.data.images."""

from typing import Any

import torch
from absl.testing import absltest, parameterized

from jigclu.data import images
from jigclu.data.loader import collate_images
from jigclu.system.errors import UserError
from tests.samples import MemorySource, eval_transform, noise


class ImageDatasetTest(parameterized.TestCase):
    def test_returns_the_center_of_the_resized_image(self) -> None:
        image = noise(3, 16, 30)
        source = MemorySource([image, image], labels=[7, 9])
        dataset = images.ImageDataset(source=source, transform=eval_transform(16, 10))
        self.assertLen(dataset, 2)
        shown, label, index, _ = dataset[1]
        self.assertTrue(torch.equal(shown, image[:, 3:13, 10:20]))
        self.assertEqual((label, index), (9, 1))

    @parameterized.parameters((40, 60), (60, 40), (8, 100))
    def test_returns_uint8_images_of_the_crop_size_and_no_label(
        self, height: int, width: int
    ) -> None:
        source = MemorySource([noise(3, height, width)])
        sample = images.ImageDataset(source=source, transform=eval_transform(32, 28))[0]
        self.assertEqual((sample.image.dtype, sample.image.shape), (torch.uint8, (3, 28, 28)))
        self.assertEqual(sample.label, -1)

    def test_rejects_unreadable_images(self) -> None:
        dataset = images.ImageDataset(source=MemorySource([None]), transform=eval_transform(32, 28))
        with self.assertRaisesRegex(UserError, "memory 0 is unreadable .unreadable on purpose"):
            dataset[0]

    def test_skips_unreadable_images_on_request(self) -> None:
        dataset = images.ImageDataset(
            source=MemorySource([noise(3, 40, 60), None], labels=[7, 9]),
            transform=eval_transform(32, 28),
            skip_unreadable=True,
        )
        readable, skipped = dataset[0], dataset[1]
        self.assertEqual((readable.label, skipped.label), (7, -1))
        self.assertEqual(skipped.image.shape, readable.image.shape)

    def test_the_image_decides_about_one_color_and_not_its_crop(self) -> None:
        source = MemorySource([torch.full((3, 40, 40), 9, dtype=torch.uint8)] * 2, labels=[0, 1])
        frame = torch.full((3, 40, 40), 9, dtype=torch.uint8)
        frame[:, 0] = 200
        framed = MemorySource([frame], labels=[0])
        for of_one_color, other in (
            (
                images.ImageDataset(source=source, transform=eval_transform(40, 10))[1],
                images.ImageDataset(source=framed, transform=eval_transform(40, 10))[0],
            ),
            (crop_dataset(source=source)[(0, 1)], crop_dataset(source=framed)[(0, 0)]),
        ):
            self.assertEqual((of_one_color.has_one_color, other.has_one_color), (True, False))
        batch = collate_images([of_one_color, other])
        self.assertEqual(batch.one_color, (1,))


def crop_dataset(**changes: Any) -> images.RandomCropDataset:
    settings: dict[str, Any] = {
        "source": MemorySource([noise(3, 40, 60), noise(3, 30, 30)], labels=[7, 9]),
        "seed": 0,
        "size": 16,
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip_probability": 0.5,
    }
    return images.RandomCropDataset(**(settings | changes))


class RandomCropDatasetTest(parameterized.TestCase):
    def test_images_depend_only_on_seed_epoch_and_index(self) -> None:
        dataset = crop_dataset()
        first = dataset[(3, 1)]
        self.assertEqual((first.label, first.image_index), (9, 1))
        self.assertEqual((first.image.dtype, first.image.shape), (torch.uint8, (3, 16, 16)))
        dataset[(4, 0)]
        self.assertTrue(torch.equal(dataset[(3, 1)].image, first.image))
        self.assertFalse(torch.equal(dataset[(4, 1)].image, first.image))
        self.assertFalse(torch.equal(crop_dataset(seed=1)[(3, 1)].image, first.image))

    def test_flip_probability_0_never_flips_and_1_always_flips(self) -> None:
        image = noise(3, 16, 16)
        whole: dict[str, Any] = {
            "source": MemorySource([image], labels=[0]),
            "scale": (1.0, 1.0),
            "ratio": (1.0, 1.0),
        }
        unflipped, flipped = (
            crop_dataset(**whole, flip_probability=p)[(0, 0)].image for p in (0.0, 1.0)
        )
        self.assertTrue(torch.equal(unflipped, image))
        self.assertTrue(torch.equal(flipped, image.flip(2)))

    def test_flips_with_the_given_probability(self) -> None:
        ramp = torch.arange(16, dtype=torch.uint8).expand(3, 16, 16)
        dataset = crop_dataset(source=MemorySource([ramp], labels=[0]), flip_probability=0.25)
        drawn = [dataset[(epoch, 0)].image[0, 0] for epoch in range(400)]
        flips = sum(int(row[0] > row[-1]) for row in drawn)
        # Binomial: mean 100, standard deviation 8.7.
        self.assertBetween(flips, 65, 135)

    def test_rejects_unreadable_images(self) -> None:
        with self.assertRaisesRegex(UserError, "memory 0 is unreadable .unreadable on purpose"):
            crop_dataset(source=MemorySource([None], labels=[0]))[(0, 0)]

    @parameterized.parameters(
        ({"size": 0}, "train_size is 0"),
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
        ({"scale": (0.0, 1.0)}, "crop_scale is"),
    )
    def test_rejects_settings_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            crop_dataset(**changes)


if __name__ == "__main__":
    absltest.main()
