"""Resizing and cropping against indices and averages by hand, normalization, and ranges."""

import io
from typing import Any

import torch
from absl.testing import absltest, parameterized
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from jigclu.data.decode import decode_image
from jigclu.data.transform import EvalTransform
from jigclu.system.errors import UserError
from tests.samples import eval_transform, noise


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 [3, height, width] bilinearly, in float32 and with anti-aliasing."""
    return functional.interpolate(
        image[None].float(), (height, width), mode="bilinear", antialias=True
    )[0]


class CropImageTest(parameterized.TestCase):
    def test_takes_the_center_of_an_image_that_has_the_size(self) -> None:
        image = noise(3, 16, 30)
        cropped = eval_transform(16, 10).crop_image(image)
        self.assertTrue(torch.equal(cropped, image[:, 3:13, 10:20]))

    def test_keeps_an_image_of_exactly_the_crop(self) -> None:
        image = noise(3, 24, 24)
        self.assertTrue(torch.equal(eval_transform(24, 24).crop_image(image), image))

    def test_halving_averages_with_the_triangle_filter(self) -> None:
        ramp = torch.arange(0, 128, 4, dtype=torch.uint8).expand(3, 32, 32).contiguous()
        cropped = eval_transform(16, 4).crop_image(ramp)
        # Output pixel x lies between inputs 2x and 2x + 1; weights 1, 3, 3, 1 of 8 around it.
        # 4 * (2x - 1 + 3 * 2x + 3 * (2x + 1) + 2x + 2) / 8 = 8x + 2, for x = 6, 7, 8, 9.
        expected = torch.tensor([50, 58, 66, 74], dtype=torch.uint8).expand(3, 4, 4)
        self.assertTrue(torch.equal(cropped, expected))

    @parameterized.parameters((40, 60, 32, 48), (60, 40, 48, 32), (8, 100, 32, 400))
    def test_resizes_the_shorter_side_and_keeps_proportions(
        self, height: int, width: int, new_height: int, new_width: int
    ) -> None:
        image = noise(3, height, width)
        cropped = eval_transform(32, 28).crop_image(image)
        self.assertEqual((cropped.dtype, cropped.shape), (torch.uint8, (3, 28, 28)))
        top, left = (new_height - 28) // 2, (new_width - 28) // 2
        expected = resized(image, new_height, new_width)[:, top : top + 28, left : left + 28]
        # torchvision resizes bytes in fixed-point arithmetic.
        self.assertLessEqual((cropped.float() - expected).abs().max(), 1)


class NormalizeTest(absltest.TestCase):
    def test_subtracts_mean_and_divides_by_deviation_of_each_channel(self) -> None:
        images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
        normalized = eval_transform(32, 32).normalize(images)
        # (0 - 0.5) / 0.25, (0.2 - 0.4) / 0.2, (1 - 0.3) / 0.3.
        expected = torch.tensor([-2.0, -1.0, 7 / 3]).view(1, 3, 1, 1)
        self.assertEqual(normalized.dtype, torch.float32)
        torch.testing.assert_close(normalized, expected)

    def test_takes_one_image_or_batches_of_them(self) -> None:
        images = noise(2, 5, 3, 4, 6)
        transform = eval_transform(32, 32)
        whole = transform.normalize(images)
        self.assertEqual(whole.shape, images.shape)
        self.assertTrue(torch.equal(whole[1, 2], transform.normalize(images[1, 2])))


class CallTest(parameterized.TestCase):
    def test_crops_and_normalizes_one_image(self) -> None:
        transform, image = eval_transform(16, 10), noise(3, 20, 30)
        result = transform(image)
        self.assertEqual((result.dtype, result.shape), (torch.float32, (3, 10, 10)))
        self.assertTrue(torch.equal(result, transform.normalize(transform.crop_image(image))))

    def test_pil_images_equal_the_pixels_that_sources_read(self) -> None:
        transform, file = eval_transform(16, 10), io.BytesIO()
        tags = Image.Exif()
        tags[ExifTags.Base.Orientation] = 6
        picture = transforms.to_pil_image(noise(3, 20, 30)).convert("P")
        picture.save(file, "PNG", exif=tags)
        with Image.open(file) as image:
            result = transform(image)
        self.assertTrue(torch.equal(result, transform(decode_image(file.getvalue()))))

    @parameterized.parameters(
        (torch.zeros(3, 8, 8), r"image is torch\.float32 \[3, 8, 8\]; expected torch\.uint8"),
        (noise(1, 3, 8, 8), r"image is torch\.uint8 \[1, 3, 8, 8\]; expected"),
        (noise(8, 8, 3), r"image is torch\.uint8 \[8, 8, 3\]; expected"),
    )
    def test_rejects_other_tensors(self, image: Tensor, message: str) -> None:
        with self.assertRaisesRegex(UserError, message):
            eval_transform(4, 4)(image)


class RangeTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"crop": 41}, r"crop is 41; it must be in \[1, resize = 40\], since images are resized"),
        ({"crop": 0}, r"crop is 0; it must be in \[1, resize = 40\]"),
        ({"mean": (0.5,)}, r"mean is \(0\.5,\); it must be three numbers"),
        ({"std": (0.2, 0.2)}, r"std is \(0\.2, 0\.2\); it must be three numbers above 0"),
        ({"std": (0.1, 0.0, 0.1)}, r"std is \(0\.1, 0\.0, 0\.1\); it must be three numbers above"),
    )
    def test_rejects_values_out_of_range(self, changes: dict[str, Any], message: str) -> None:
        valid: dict[str, Any] = {
            "resize": 40,
            "crop": 40,
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.2, 0.2),
        }
        EvalTransform(**valid)
        with self.assertRaisesRegex(UserError, message):
            EvalTransform(**valid | changes)


if __name__ == "__main__":
    absltest.main()
