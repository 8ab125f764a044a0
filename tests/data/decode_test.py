"""Tests of jigclu.data.decode."""

import io
import subprocess
import sys
import warnings
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import decode
from jigclu.ops.jigsaw import Box

ORIENTATION = 0x0112


def picture() -> Image.Image:
    """Returns a smooth picture, 40 pixels wide and 24 high, that JPEG preserves nearly exactly."""
    rows, columns = np.mgrid[0:24, 0:40]
    pixels = np.stack([rows * 10, columns * 6, 255 - rows * 5 - columns * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


class DecodeImageTest(parameterized.TestCase):
    @parameterized.parameters("PNG", "BMP", "TIFF", "PPM")
    def test_lossless_formats_are_exact(self, kind: str) -> None:
        image = decode.decode_image(encode(picture(), kind))
        self.assertEqual(image.dtype, torch.uint8)
        np.testing.assert_array_equal(as_array(image), np.asarray(picture()))

    @parameterized.parameters(("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "RGB"))
    def test_lossy_formats_are_close(self, kind: str, mode: str) -> None:
        image = decode.decode_image(encode(picture().convert(mode), kind, quality=95))
        difference = np.abs(as_array(image) - np.asarray(picture()))
        self.assertLess(difference.mean(), 8)

    @parameterized.parameters(("JPEG", "L"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "1"))
    def test_gray_becomes_three_equal_channels(self, kind: str, mode: str) -> None:
        gray = picture().convert(mode)
        image = decode.decode_image(encode(gray, kind))
        self.assertEqual(image.shape, (3, 24, 40))
        self.assertTrue(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]))
        self.assertLess(np.abs(as_array(image) - np.asarray(gray.convert("RGB"))).mean(), 3)

    @parameterized.parameters("P", "RGBA")
    def test_palette_and_alpha_become_rgb(self, mode: str) -> None:
        converted = picture().convert(mode)
        image = decode.decode_image(encode(converted, "PNG"))
        np.testing.assert_array_equal(as_array(image), np.asarray(converted.convert("RGB")))

    def test_transparent_palette_does_not_warn(self) -> None:
        converted = picture().convert("P")
        data = encode(converted, "PNG", transparency=bytes([0, 128, 255]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = decode.decode_image(data)
        np.testing.assert_array_equal(as_array(image), np.asarray(converted.convert("RGB")))

    def test_sixteen_bits_are_scaled_to_eight(self) -> None:
        deep = Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16))
        image = decode.decode_image(encode(deep, "PNG"))
        self.assertEqual(image.dtype, torch.uint8)
        np.testing.assert_array_equal(image[1].flatten().numpy(), np.arange(256))

    def test_animations_yield_their_first_frame(self) -> None:
        frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
        image = decode.decode_image(
            encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        )
        self.assertEqual(image.shape, (3, 6, 8))
        self.assertEqual(image[:, 0, 0].tolist(), [255, 0, 0])

    @parameterized.parameters(("JPEG",), ("TIFF",))
    def test_applies_the_exif_orientation(self, kind: str) -> None:
        tags = Image.Exif()
        tags[ORIENTATION] = 6  # Must be rotated clockwise.
        image = decode.decode_image(encode(picture(), kind, exif=tags))
        expected = np.asarray(picture().transpose(Image.Transpose.ROTATE_270)).astype(int)
        self.assertEqual(image.shape, (3, 40, 24))
        self.assertLess(np.abs(as_array(image) - expected).mean(), 8)

    @parameterized.parameters("RGB", "L")
    def test_torchvision_and_pillow_decode_jpeg_alike(self, mode: str) -> None:
        tags = Image.Exif()
        for orientation in (1, 3, 6):
            tags[ORIENTATION] = orientation
            data = encode(picture().convert(mode), "JPEG", exif=tags, quality=80)
            image = decode.decode_image(data)
            with mock.patch.object(decode, "_torchvision_jpeg", return_value=None) as other:
                self.assertTrue(torch.equal(decode.decode_image(data), image))
            other.assert_called_once()

    def test_torchvision_decoder_is_available(self) -> None:
        data = torch.frombuffer(bytearray(encode(picture(), "JPEG")), dtype=torch.uint8)
        self.assertIsNotNone(decode._torchvision_jpeg(data))

    def test_jpeg_is_decoded_without_torchvisions_operator(self) -> None:
        data = encode(picture(), "JPEG")
        expected = decode.decode_image(data)
        with mock.patch.object(torch.ops, "image", object()):
            self.assertTrue(torch.equal(decode.decode_image(data), expected))

    @parameterized.parameters(2, 4, 8)
    def test_jpeg_is_shrunk_by_the_requested_factor(self, factor: int) -> None:
        tags = Image.Exif()
        tags[ORIENTATION] = 6
        sizes = []

        def reduction(*size: int) -> int:
            sizes.append(size)
            return factor

        image = decode.decode_image(encode(picture(), "JPEG", exif=tags, quality=95), reduction)
        self.assertEqual(sizes, [(40, 24)])
        self.assertEqual(image.shape, (3, 40 // factor, 24 // factor))
        upright = picture().transpose(Image.Transpose.ROTATE_270)
        expected = np.asarray(upright.reduce(factor)).astype(int)
        self.assertLess(np.abs(as_array(image) - expected).mean(), 8)

    @parameterized.parameters(1, 4)
    def test_decode_upright_jpeg_equals_decode_image(self, factor: int) -> None:
        data = encode(picture(), "JPEG", quality=80)
        sizes = []

        def reduction(*size: int) -> int:
            sizes.append(size)
            return factor

        image = decode.decode_upright_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), 24, 40, reduction
        )
        self.assertEqual(sizes[0], (24, 40))
        self.assertTrue(torch.equal(image, decode.decode_image(data, lambda *_: factor)))

    def test_decode_upright_jpeg_rejects_other_data(self) -> None:
        with self.assertRaisesRegex(decode.UnreadableImageError, "cannot identify"):
            data = torch.frombuffer(bytearray(b"nothing"), dtype=torch.uint8)
            decode.decode_upright_jpeg(data, 24, 40, decode.at_full_size)

    @parameterized.parameters(0, 9, 255)
    def test_invalid_orientations_are_ignored(self, orientation: int) -> None:
        tags = Image.Exif()
        tags[ORIENTATION] = orientation
        image = decode.decode_image(encode(picture(), "JPEG", exif=tags), lambda height, width: 2)
        self.assertEqual(image.shape, (3, 12, 20))

    def test_other_formats_are_not_shrunk(self) -> None:
        image = decode.decode_image(encode(picture(), "PNG"), lambda height, width: 8)
        self.assertEqual(image.shape, (3, 24, 40))

    @parameterized.named_parameters(
        ("empty", b"", "empty"),
        ("text", b"<html>Not found</html>", "cannot identify image file$"),
        ("truncated_jpeg", encode(picture(), "JPEG")[:-40], "truncated"),
        ("truncated_png", encode(picture(), "PNG")[:60], ""),
        ("header_only", encode(picture(), "JPEG")[:10], ""),
    )
    def test_unreadable_data_raise_with_a_reason(self, data: bytes, reason: str) -> None:
        with self.assertRaisesRegex(decode.UnreadableImageError, reason):
            decode.decode_image(data)


# Decodes a JPEG from standard input, in the main process and in a worker process.
WARNING_SCRIPT = """
import sys
from torch.utils.data import DataLoader
from jigclu.data.decode import decode_image

data = sys.stdin.buffer.read()
decode_image(data)
list(DataLoader([data], batch_size=None, num_workers=1, collate_fn=decode_image))
{extra}
"""
DEPRECATED_CALL = """
import torch, torchvision
torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
"""


class WarningTest(absltest.TestCase):
    """Decoding does not trigger torchvision's deprecation warning."""

    def _run(self, extra: str = "") -> str:
        """Returns the standard error of the script when Python shows every warning."""
        command = [sys.executable, "-W", "always", "-c", WARNING_SCRIPT.format(extra=extra)]
        data = encode(picture(), "JPEG")
        result = subprocess.run(command, input=data, check=True, capture_output=True)
        return result.stderr.decode()

    def test_decoding_does_not_warn(self) -> None:
        self.assertNotIn("TorchCodec", self._run())

    def test_direct_calls_of_torchvision_still_warn(self) -> None:
        version = tuple(map(int, torchvision.__version__.split(".")[:2]))
        if version < (0, 29):
            self.skipTest("torchvision deprecated its decoders in 0.29")
        self.assertIn("TorchCodec", self._run(DEPRECATED_CALL))


class CropResizeTest(absltest.TestCase):
    def test_matches_antialiased_bilinear_resizing_of_pil(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        actual = decode.crop_resize(image, Box(top=5, left=20, height=70, width=95), size=32)
        expected = (
            Image.fromarray(pixels)
            .crop((20, 5, 115, 75))
            .resize((32, 32), Image.Resampling.BILINEAR)
        )
        self.assertEqual(actual.dtype, torch.uint8)
        self.assertEqual(actual.shape, (3, 32, 32))
        self.assertLessEqual(np.abs(as_array(actual) - np.asarray(expected).astype(int)).max(), 1)

    def test_whole_image_at_the_same_size_is_unchanged(self) -> None:
        image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        self.assertTrue(torch.equal(decode.crop_resize(image, Box(0, 0, 16, 16), 16), image))


if __name__ == "__main__":
    absltest.main()
