"""Tests of jigclu.data.procedural."""

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor

from jigclu.data.procedural import ProceduralImages
from jigclu.system.errors import UserError


def read_all(source: ProceduralImages) -> Tensor:
    return torch.stack([source.read(index) for index in range(len(source))])


class ProceduralImagesTest(parameterized.TestCase):
    @parameterized.parameters(16, 33, 64)
    def test_images_are_uint8_of_the_requested_size(self, size: int) -> None:
        source = ProceduralImages(images=10, size=size, seed=0, split="train")
        for index in range(10):
            image = source.read(index)
            self.assertEqual((image.shape, image.dtype), ((3, size, size), torch.uint8))
            self.assertGreater(image.float().std().item(), 5)

    def test_images_depend_only_on_seed_split_and_index(self) -> None:
        few = ProceduralImages(images=20, size=32, seed=5, split="train")
        many = ProceduralImages(images=40, size=32, seed=5, split="train")
        backwards = [many.read(index) for index in reversed(range(20))][::-1]
        self.assertTrue(torch.equal(read_all(few), torch.stack(backwards)))

    def test_different_splits_and_seeds_share_no_image(self) -> None:
        sources = [
            ProceduralImages(images=100, size=16, seed=seed, split=split)
            for seed in (0, 1)
            for split in ("train", "val")
        ]
        images = torch.cat([read_all(source) for source in sources])
        self.assertLen({image.numpy().tobytes() for image in images}, 400)

    def test_labels_are_balanced_and_names_contain_the_class(self) -> None:
        source = ProceduralImages(images=50, size=16, seed=0, split="val")
        self.assertLen(source, 50)
        self.assertLen(set(source.classes), 10)
        self.assertEqual(np.bincount(source.labels).tolist(), [5] * 10)
        self.assertEqual(source.name(13), f"val/{source.classes[3]}/000013")

    def test_mean_color_does_not_predict_the_class(self) -> None:
        train, val = (
            ProceduralImages(images=1000, size=16, seed=0, split=split)
            for split in ("train", "val")
        )
        train_colors = read_all(train).float().mean((2, 3))
        val_colors = read_all(val).float().mean((2, 3))
        labels = torch.tensor(train.labels)
        centers = torch.stack([train_colors[labels == label].mean(0) for label in range(10)])
        guesses = torch.cdist(val_colors, centers).argmin(1)
        accuracy = (guesses == torch.tensor(val.labels)).float().mean().item()
        self.assertLess(accuracy, 0.17)  # Chance is 0.10, one standard deviation 0.01.

    @parameterized.parameters(
        ({"images": 0}, "images is 0"),
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "test"}, "split is 'test'"),
    )
    def test_rejects_settings_out_of_range(self, wrong: dict[str, int | str], message: str) -> None:
        given = {"images": 10, "size": 32, "seed": 0, "split": "train"} | wrong
        with self.assertRaisesRegex(UserError, message):
            ProceduralImages(**given)  # type: ignore[arg-type]


if __name__ == "__main__":
    absltest.main()
