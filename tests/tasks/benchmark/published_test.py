"""Tests of jigclu.tasks.benchmark.published against the functions of this project."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from absl.testing import absltest
from PIL import Image
from torch.nn import functional

from jigclu.data.decode import crop_resize
from jigclu.methods.forward import MethodForward
from jigclu.models.encoder import create_encoder
from jigclu.ops import jigsaw, losses
from jigclu.ops.augment import draw_augmentation
from jigclu.tasks.benchmark import published
from tests.samples import AUGMENTATION, JIGSAW

CPU = torch.device("cpu")
# Nothing is changed but mean and std.
STILL = dataclasses.replace(
    AUGMENTATION,
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    flip_probability=0.0,
)


class PublishedTest(absltest.TestCase):
    def test_patches_are_those_of_this_project(self) -> None:
        random = np.random.default_rng(0)
        small = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        path = Path(self.create_tempdir().full_path) / "image.png"
        # 100 x 100 pixels, so that a crop of ratio 1 is the whole region.
        small.resize((100, 100), Image.Resampling.BICUBIC).save(path)
        reader = published.PublishedPatches(2, 0.3, 32, (1.0, 1.0), (1.0, 1.0), STILL)
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        expected = torch.stack(
            [crop_resize(image, box, 32) for box in jigsaw.patch_boxes(100, 100, 2, 0.3)]
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (STILL.mean, STILL.std))
        actual = reader.read(str(path)) * std + mean
        # Rounded to bytes by both.
        torch.testing.assert_close(actual, expected / 255, rtol=0, atol=1.1 / 255)

    def test_augments(self) -> None:
        path = Path(self.create_tempdir().full_path) / "image.png"
        Image.new("RGB", (64, 64), (200, 40, 90)).save(path)
        gray = dataclasses.replace(
            STILL, grayscale_probability=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
        patches = published.PublishedPatches(2, 0.3, 16, (0.2, 1.0), (0.75, 1.33), gray).read(
            str(path)
        )
        self.assertEqual(patches.shape, (4, 3, 16, 16))
        luma = (0.299 * 200 + 0.587 * 40 + 0.114 * 90) / 255
        torch.testing.assert_close(patches, torch.full_like(patches, luma), rtol=0, atol=1 / 255)

    def test_loss_of_all_pairs_is_the_clustering_loss(self) -> None:
        generator = torch.Generator().manual_seed(0)
        by_image = functional.normalize(torch.randn(5, 4, 16, generator=generator), dim=2)
        by_image.requires_grad_()
        expected = losses.clustering_loss(by_image, 0, 5, 0.3, 0.07)
        order = torch.randperm(20, generator=generator)
        actual = published.clustering_loss(by_image.flatten(0, 1)[order], order // 4, 0.3, 0.07)
        torch.testing.assert_close(actual, expected)
        (theirs,) = torch.autograd.grad(actual, by_image)
        (ours,) = torch.autograd.grad(expected, by_image)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)

    def test_step_has_the_loss_of_pre_training(self) -> None:
        step = published.PublishedStep("resnet18", 2, 16, 0.3, 0.07, CPU)
        method = dataclasses.replace(JIGSAW, augmentation=STILL, pooling_map=8)
        network = method.network(create_encoder("resnet18", False))
        network.load_state_dict(step._model.state_dict(), strict=False)
        forward = MethodForward(method, network, "float32", False, None, 1)
        count = 4 * 4
        patches = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        permutation = jigsaw.global_permutation(0, 0, count)
        drawn = draw_augmentation(STILL, 0, 0, count)
        expected = forward(patches[permutation], drawn, (permutation,))[0].loss
        actual = step(STILL(patches, drawn), permutation)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        buffer = step._optimizer.state[step._model.fc_loc.weight]["momentum_buffer"]
        self.assertGreater(buffer.abs().sum(), 0)


if __name__ == "__main__":
    absltest.main()
