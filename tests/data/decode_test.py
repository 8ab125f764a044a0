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
    """A smooth picture, 40 wide and 24 high, that JPEG keeps nearly exactly."""
    rows, columns = np.mgrid[0:24, 0:40]
    pixels = np.stack([rows * 10, columns * 6, 255 - rows * 5 - columns * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


class DecodeImageTest(parameterized.TestCase):
    @parameterized.parameters("PNG", "BMP", "TIFF", "PPM")
    def test_lossless_kinds_are_exact(self, kind: str) -> None:
        image = decode.decode_image(encode(picture(), kind))
        self.assertEqual(image.dtype, torch.uint8)
        np.testing.assert_array_equal(as_array(image), np.asarray(picture()))

    @parameterized.parameters(("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "RGB"))
    def test_lossy_kinds_are_close(self, kind: str, mode: str) -> None:
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

    def test_transparent_palette_makes_no_noise(self) -> None:
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

    def test_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
        image = decode.decode_image(
            encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        )
        self.assertEqual(image.shape, (3, 6, 8))
        self.assertEqual(image[:, 0, 0].tolist(), [255, 0, 0])

    @parameterized.parameters(("JPEG",), ("TIFF",))
    def test_is_upright_by_its_orientation(self, kind: str) -> None:
        tags = Image.Exif()
        tags[ORIENTATION] = 6  # The camera was turned: show it rotated clockwise.
        image = decode.decode_image(encode(picture(), kind, exif=tags))
        expected = np.asarray(picture().transpose(Image.Transpose.ROTATE_270)).astype(int)
        self.assertEqual(image.shape, (3, 40, 24))
        self.assertLess(np.abs(as_array(image) - expected).mean(), 8)

    @parameterized.parameters("RGB", "L")
    def test_both_decoders_of_jpeg_agree(self, mode: str) -> None:
        tags = Image.Exif()
        for orientation in (1, 3, 6):
            tags[ORIENTATION] = orientation
            data = encode(picture().convert(mode), "JPEG", exif=tags, quality=80)
            image = decode.decode_image(data)
            with mock.patch.object(decode, "_torchvision_jpeg", return_value=None) as other:
                self.assertTrue(torch.equal(decode.decode_image(data), image))
            other.assert_called_once()

    def test_torchvision_decodes_jpeg(self) -> None:
        data = torch.frombuffer(bytearray(encode(picture(), "JPEG")), dtype=torch.uint8)
        self.assertIsNotNone(decode._torchvision_jpeg(data))

    def test_jpeg_without_torchvisions_decoder(self) -> None:
        data = encode(picture(), "JPEG")
        expected = decode.decode_image(data)
        with mock.patch.object(torch.ops, "image", object()):
            self.assertTrue(torch.equal(decode.decode_image(data), expected))

    @parameterized.parameters(2, 4, 8)
    def test_jpeg_is_shrunk_while_decoding(self, factor: int) -> None:
        tags = Image.Exif()
        tags[ORIENTATION] = 6
        asked = []

        def reduction(*size: int) -> int:
            asked.append(size)
            return factor

        image = decode.decode_image(encode(picture(), "JPEG", exif=tags, quality=95), reduction)
        self.assertEqual(asked, [(40, 24)])
        self.assertEqual(image.shape, (3, 40 // factor, 24 // factor))
        upright = picture().transpose(Image.Transpose.ROTATE_270)
        expected = np.asarray(upright.reduce(factor)).astype(int)
        self.assertLess(np.abs(as_array(image) - expected).mean(), 8)

    @parameterized.parameters(1, 4)
    def test_upright_jpeg_of_known_size_decodes_alike(self, factor: int) -> None:
        data = encode(picture(), "JPEG", quality=80)
        asked = []

        def reduction(*size: int) -> int:
            asked.append(size)
            return factor

        image = decode.decode_upright_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), 24, 40, reduction
        )
        self.assertEqual(asked[0], (24, 40))
        self.assertTrue(torch.equal(image, decode.decode_image(data, lambda *_: factor)))

    def test_bytes_that_are_no_jpeg_are_told(self) -> None:
        with self.assertRaisesRegex(decode.UnreadableImageError, "cannot identify"):
            data = torch.frombuffer(bytearray(b"nothing"), dtype=torch.uint8)
            decode.decode_upright_jpeg(data, 24, 40, decode.at_full_size)

    @parameterized.parameters(0, 9, 255)
    def test_orientations_that_mean_nothing_turn_nothing(self, orientation: int) -> None:
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
        ("cut_jpeg", encode(picture(), "JPEG")[:-40], "truncated"),
        ("cut_png", encode(picture(), "PNG")[:60], ""),
        ("header_only", encode(picture(), "JPEG")[:10], ""),
    )
    def test_says_what_is_unreadable(self, data: bytes, reason: str) -> None:
        with self.assertRaisesRegex(decode.UnreadableImageError, reason):
            decode.decode_image(data)


# Decodes a JPEG from standard input in this process and in a worker process.
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
    """torchvision's warning that its decoders are deprecated reaches nobody."""

    def _run(self, extra: str = "") -> str:
        """Returns what the script prints when Python shows every warning."""
        command = [sys.executable, "-W", "always", "-c", WARNING_SCRIPT.format(extra=extra)]
        data = encode(picture(), "JPEG")
        done = subprocess.run(command, input=data, check=True, capture_output=True)
        return done.stderr.decode()

    def test_decoding_does_not_warn(self) -> None:
        self.assertNotIn("TorchCodec", self._run())

    def test_the_users_own_calls_still_warn(self) -> None:
        version = tuple(map(int, torchvision.__version__.split(".")[:2]))
        if version < (0, 29):
            self.skipTest("torchvision deprecated its decoders in 0.29")
        self.assertIn("TorchCodec", self._run(DEPRECATED_CALL))


class CropResizeTest(absltest.TestCase):
    def test_matches_antialiased_bilinear_of_pil(self) -> None:
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

    def test_whole_image_at_its_own_size_is_unchanged(self) -> None:
        image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
        self.assertTrue(torch.equal(decode.crop_resize(image, Box(0, 0, 16, 16), 16), image))


if __name__ == "__main__":
    absltest.main()
