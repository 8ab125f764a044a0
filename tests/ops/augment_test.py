"""Tests of jigclu.ops.augment."""

import dataclasses
from typing import Any

import numpy as np
import torch
from absl.testing import absltest, parameterized
from torch import Tensor
from torchvision.transforms.v2 import functional

from jigclu.ops import augment
from jigclu.ops.augment import AugmentationParameters, ColorAugmentation
from jigclu.system.errors import UserError

PUBLISHED = ColorAugmentation(
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    blur_sigma_min=0.1,
    blur_sigma_max=2.0,
    flip_probability=0.5,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
# Does not change pixels in [0, 1].
PLAIN = dataclasses.replace(PUBLISHED, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
ADJUST = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def random_patches(count: int, size: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    patches[:, :, :3] = patches[:, :1, :3]  # Gray rows, whose hue is 0 / 0.
    patches[:, :, 0, 0] = 0
    return patches


def draw(
    augmentation: ColorAugmentation, seed: int, step: int, count: int
) -> AugmentationParameters:
    return AugmentationParameters(*augment.draw_augmentation(augmentation, seed, step, count))


def identity(count: int) -> AugmentationParameters:
    return AugmentationParameters(
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        order=torch.arange(4).repeat(count, 1),
        grayscale=torch.zeros(count, dtype=torch.bool),
        sigma=torch.zeros(count),
        flip=torch.zeros(count, dtype=torch.bool),
    )


def augment_with_torchvision(patch: Tensor, row: AugmentationParameters, radius: int) -> Tensor:
    """Augments one patch with torchvision's operations: float [3, size, size]."""
    image = patch.float() / 255
    for operation in row.order.tolist():
        image = ADJUST[operation](image, row.factors[operation].item())
    if row.grayscale:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if row.sigma > 0:
        image = functional.gaussian_blur(image, [2 * radius + 1] * 2, [row.sigma.item()] * 2)
    return functional.horizontal_flip(image) if row.flip else image


class AugmentTest(parameterized.TestCase):
    def test_identity_only_normalizes(self) -> None:
        patches = random_patches(2)
        expected = functional.normalize(
            patches.float() / 255, list(PUBLISHED.mean), list(PUBLISHED.std)
        )
        torch.testing.assert_close(PUBLISHED(patches, identity(2)), expected)

    @parameterized.parameters(
        (augment.BRIGHTNESS, [0.0, 0.6, 1.4]),
        (augment.CONTRAST, [0.0, 0.6, 1.4]),
        (augment.SATURATION, [0.0, 0.6, 1.4]),
        (augment.HUE, [-0.5, -0.1, 0.07, 0.37]),
    )
    def test_each_color_operation_equals_torchvisions(
        self, operation: int, values: list[float]
    ) -> None:
        patches = random_patches(len(values))
        parameters = identity(len(values))
        parameters.factors[:, operation] = torch.tensor(values)
        actual = PLAIN(patches, parameters)
        for patch, value, image in zip(patches, values, actual, strict=True):
            expected = ADJUST[operation](patch.float() / 255, value)
            torch.testing.assert_close(image, expected, atol=2e-6, rtol=0)

    def test_composition_equals_torchvisions_in_the_order_of_each_patch(self) -> None:
        patches = random_patches(48)
        parameters = draw(PLAIN, seed=1, step=2, count=48)
        self.assertGreater(len(parameters.order.unique(dim=0)), 12)
        actual = PLAIN(patches, parameters)
        for index, patch in enumerate(patches):
            row = AugmentationParameters._make(values[index] for values in parameters)
            expected = augment_with_torchvision(patch, row, radius=6)
            # The hue of nearly gray pixels amplifies rounding, so the tolerance is not 1e-6.
            torch.testing.assert_close(actual[index], expected, atol=1e-4, rtol=0)

    def test_flip_only_mirrors_chosen_patches(self) -> None:
        patches = random_patches(2)
        flip = torch.tensor([True, False])
        actual = PLAIN(patches, identity(2)._replace(flip=flip))
        plain = PLAIN(patches, identity(2))
        self.assertTrue(torch.equal(actual[0], plain[0].flip(-1)))
        self.assertTrue(torch.equal(actual[1], plain[1]))

    def test_grayscale_sets_all_channels_to_the_luma(self) -> None:
        red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 2, 2)
        grayscale = torch.tensor([True, False])
        actual = PLAIN(red, identity(2)._replace(grayscale=grayscale))
        np.testing.assert_allclose(actual[0], 0.2989, atol=1e-6)
        np.testing.assert_array_equal(actual[1, :, 0, 0], [1, 0, 0])

    def test_blur_convolves_with_a_normalized_gaussian(self) -> None:
        patches = torch.zeros(3, 3, 31, 31, dtype=torch.uint8)
        patches[:, :, 15, 15] = 255
        sigmas = [0.0, 0.5, 2.0]
        parameters = identity(3)._replace(sigma=torch.tensor(sigmas))
        actual = PLAIN(patches, parameters).numpy()
        self.assertEqual(actual[0, 0, 15, 15], 1.0)
        self.assertEqual(np.count_nonzero(actual[0]), 3)
        offsets = np.arange(31) - 15.0
        for sigma, image in zip(sigmas[1:], actual[1:], strict=True):
            line = np.exp(-(offsets**2) / (2 * sigma**2)) * (abs(offsets) <= 6)
            expected = np.outer(line, line) / line.sum() ** 2
            np.testing.assert_allclose(image, np.stack([expected] * 3), atol=1e-6)

    @parameterized.parameters(1, 2, 5, 8)
    def test_blur_keeps_constant_patches_of_any_size(self, size: int) -> None:
        patches = torch.full((1, 3, size, size), 100, dtype=torch.uint8)
        parameters = identity(1)._replace(sigma=torch.tensor([2.0]))
        actual = PLAIN(patches, parameters)
        np.testing.assert_allclose(actual, np.full((1, 3, size, size), 100 / 255), atol=1e-6)

    def test_compiles_once_without_graph_breaks(self) -> None:
        patches = random_patches(8)
        compiled = torch.compile(PUBLISHED.__call__, fullgraph=True)
        for step in range(3):
            parameters = draw(PUBLISHED, seed=0, step=step, count=8)
            with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
                actual = compiled(patches, parameters)
            expected = PUBLISHED(patches, parameters)
            torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


class DrawTest(parameterized.TestCase):
    def test_draws_depend_only_on_seed_and_step(self) -> None:
        first = draw(PUBLISHED, seed=3, step=7, count=64)
        again = draw(PUBLISHED, seed=3, step=7, count=64)
        for name, one, same in zip(first._fields, first, again, strict=True):
            self.assertTrue(torch.equal(one, same), name)
        for seed, step in ((3, 8), (4, 7)):
            other = draw(PUBLISHED, seed, step, count=64)
            for name, one, different in zip(first._fields, first, other, strict=True):
                self.assertFalse(torch.equal(one, different), name)

    def test_draws_have_the_published_distribution(self) -> None:
        count = 20_000
        drawn = draw(PUBLISHED, seed=0, step=0, count=count)
        jittered = (drawn.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
        self.assertAlmostEqual(jittered.float().mean().item(), 0.8, delta=0.02)
        self.assertAlmostEqual(drawn.grayscale.float().mean().item(), 0.2, delta=0.02)
        self.assertAlmostEqual((drawn.sigma > 0).float().mean().item(), 0.5, delta=0.02)
        self.assertAlmostEqual(drawn.flip.float().mean().item(), 0.5, delta=0.02)
        sigma = drawn.sigma[drawn.sigma > 0]
        factors = drawn.factors[jittered]
        ranges = [(sigma, 0.1, 2.0), (factors[:, augment.HUE], -0.1, 0.1)]
        ranges += [(factors[:, operation], 0.6, 1.4) for operation in range(3)]
        for values, low, high in ranges:
            span = high - low
            self.assertBetween(values.min().item(), low - 1e-6, low + 0.01 * span)
            self.assertBetween(values.max().item(), high - 0.01 * span, high + 1e-6)
            self.assertAlmostEqual(values.mean().item(), (low + high) / 2, delta=0.02 * span)
        self.assertTrue(torch.equal(drawn.order.sort(1).values, torch.arange(4).repeat(count, 1)))
        _, orders = drawn.order.unique(dim=0, return_counts=True)
        self.assertLen(orders, 24)
        self.assertLess((orders / count - 1 / 24).abs().max().item(), 0.01)

    def test_selected_rows_augment_the_selected_patches(self) -> None:
        patches = random_patches(6)
        drawn = draw(PUBLISHED, seed=0, step=0, count=6)
        rows = torch.tensor([4, 1])
        part = PUBLISHED(patches[rows], augment.select_rows(drawn, rows, "cpu"))
        torch.testing.assert_close(part, PUBLISHED(patches, drawn)[rows])


class SettingsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("brightness", -0.1, "brightness is -0.1"),
        ("hue", 0.6, "hue is 0.6"),
        ("flip_probability", 1.5, "flip_probability is 1.5"),
        ("blur_sigma_min", 0.0, "blur_sigma_min is 0.0"),
        ("blur_sigma_max", 0.05, "blur_sigma_max is 0.05; it must be at least .* = 0.1"),
        ("mean", (0.5, 0.5), "mean is .* three numbers"),
        ("std", (0.5, 0.5, 0.0), "std is"),
    )
    def test_rejects_values_out_of_range(self, name: str, value: Any, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            dataclasses.replace(PUBLISHED, **{name: value})


if __name__ == "__main__":
    absltest.main()
