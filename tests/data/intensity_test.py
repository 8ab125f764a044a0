"""Tests of jigclu.data.intensity: deep images as they are decoded."""

import dataclasses
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from absl.testing import absltest, parameterized
from PIL import Image

from jigclu.data import decode
from jigclu.data.decode import Decoding, UnreadableImageError
from jigclu.system.errors import UserError

RAMP = np.arange(256).reshape(16, 16)


def encode(values: np.ndarray, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, file_format, **options)
    return file.getvalue()


def with_significant_bits(png: bytes, bits: int) -> bytes:
    """Adds an sBIT chunk behind the header of a gray PNG."""
    chunk = b"sBIT" + bytes([bits])
    return png[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def color_png(values: np.ndarray) -> bytes:
    """Returns an RGB PNG of 16 bits, which Pillow cannot write; values [height, width, 3]."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def decoded(data: bytes, intensity_range: tuple[float, float] | None = None) -> np.ndarray:
    """Returns the first channel of a decoded image."""
    settings = Decoding(intensity_range=intensity_range, most_pixels=10**6, most_bytes=10**9)
    return decode.decode_image(data, decoding=settings)[0].numpy()


class DeclaredRangeTest(absltest.TestCase):
    def test_sixteen_bits_keep_their_upper_byte(self) -> None:
        values = (RAMP * 257).astype(np.uint16)
        for kind in ("PNG", "TIFF", "PPM"):
            np.testing.assert_array_equal(decoded(encode(values, kind)), RAMP)

    def test_twelve_declared_bits_span_black_to_white(self) -> None:
        values = (RAMP * 16 + 15).astype(np.uint16)
        png = with_significant_bits(encode(values, "PNG"), 12)
        np.testing.assert_array_equal(decoded(png), RAMP)
        tiff = encode(values, "TIFF", tiffinfo={281: 4095})
        np.testing.assert_array_equal(decoded(tiff), RAMP)

    def test_declared_bits_that_values_exceed_are_those_of_the_sensor(self) -> None:
        values = (RAMP * 257).astype(np.uint16)
        png = with_significant_bits(encode(values, "PNG"), 12)
        np.testing.assert_array_equal(decoded(png), RAMP)

    def test_floats_span_zero_to_one(self) -> None:
        tiff = encode((RAMP / 255).astype(np.float32), "TIFF")
        np.testing.assert_allclose(decoded(tiff), RAMP, atol=1)

    def test_large_images_are_converted_in_strips(self) -> None:
        values = (RAMP * 257).astype(np.uint16)
        with mock.patch.object(decode, "_STRIP_PIXELS", 40):
            np.testing.assert_array_equal(decoded(encode(values, "PNG")), RAMP)


class GivenRangeTest(parameterized.TestCase):
    @parameterized.parameters(
        ((RAMP * 16).astype(np.uint16), (0, 4095)),
        ((RAMP * 2**20).astype(np.int32), (0, 2**28 - 1)),
        ((RAMP - 100).astype(np.int32), (-100, 155)),
        ((RAMP * 10.0 + 5).astype(np.float32), (0, 2560)),
    )
    def test_given_range_spans_black_to_white(
        self, values: np.ndarray, given: tuple[float, float]
    ) -> None:
        np.testing.assert_array_equal(decoded(encode(values, "TIFF"), given), RAMP)

    def test_values_beyond_are_clipped(self) -> None:
        values = np.array([[-5, 0, 99, 100, 2**31 - 1]], np.int32)
        pixels = decoded(encode(values, "TIFF"), (0, 99))
        np.testing.assert_array_equal(pixels, [[0, 0, 253, 255, 255]])

    def test_eight_bits_are_unchanged(self) -> None:
        png = encode(RAMP.astype(np.uint8), "PNG")
        np.testing.assert_array_equal(decoded(png, (0, 4095)), RAMP)

    @parameterized.parameters((1, 1), (5, 0), (0, float("nan")))
    def test_rejects_empty_ranges(self, black: float, white: float) -> None:
        with self.assertRaisesRegex(UserError, "intensity_range is .* ascending"):
            Decoding(intensity_range=(black, white), most_pixels=1, most_bytes=1)


class UnreadableTest(parameterized.TestCase):
    @parameterized.parameters(
        ((RAMP * 16).astype(np.uint16), "PNG", "values from 0 to 4080, .* nearly black .* bind"),
        ((RAMP / 9999).astype(np.float32), "TIFF", "nearly black in the range 0 to 1: bind"),
        (RAMP.astype(np.float32), "TIFF", "values from 0 to 255, expected 0 to 1: bind"),
        (np.array([[0.5, np.nan]], np.float32), "TIFF", "not finite"),
        (RAMP.astype(np.int32), "TIFF", "32-bit or signed integers, values from 0 to 255"),
    )
    def test_images_without_a_range_are_unreadable(
        self, values: np.ndarray, kind: str, reason: str
    ) -> None:
        with self.assertRaisesRegex(UnreadableImageError, f"^[^:]*{reason}"):
            decoded(encode(values, kind))

    def test_deep_colors_must_not_need_their_lower_byte(self) -> None:
        values = np.stack([RAMP * 257] * 3, axis=2)
        np.testing.assert_array_equal(decoded(color_png(values)), RAMP)
        with self.assertRaisesRegex(UnreadableImageError, "nearly black: convert it to 8 bits"):
            decoded(color_png(values // 16))
        with self.assertRaisesRegex(UnreadableImageError, "no intensity_range applies"):
            decoded(color_png(values), (0, 4095))


class LimitTest(absltest.TestCase):
    def test_usual_settings_are_those_of_the_gin_file(self) -> None:
        file = Path(__file__).parents[2] / "gin" / "base" / "decoding.gin"
        bound = dict(re.findall(r"^decoding\.(\w+) = (\w+)", file.read_text(), re.MULTILINE))
        usual = dataclasses.asdict(decode.USUAL_DECODING)
        self.assertEqual(bound, {name: str(value) for name, value in usual.items()})

    def test_the_limit_replaces_that_of_pillow(self) -> None:
        data = encode(np.zeros((20, 30), np.uint8), "PNG")
        with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 10):
            small = Decoding(intensity_range=None, most_pixels=600, most_bytes=10**6)
            self.assertEqual(decode.decode_image(data, decoding=small).shape, (3, 20, 30))
            self.assertEqual(Image.MAX_IMAGE_PIXELS, 10)
        smaller = dataclasses.replace(small, most_pixels=599)
        with self.assertRaisesRegex(UnreadableImageError, "30x20 pixels are more than decoding"):
            decode.decode_image(data, decoding=smaller)


# Prints the memory that decoding a file from standard input takes at most, in bytes.
MEMORY_SCRIPT = """
import sys
from jigclu.data.decode import decode_image

data = sys.stdin.buffer.read()


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if name in line)


with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
decode_image(data)
print(status("VmHWM") - before)
"""


class MemoryTest(parameterized.TestCase):
    @parameterized.parameters(("RGB", 1), ("RGB", 6), ("I;16", 1))
    def test_large_images_take_at_most_the_documented_memory(
        self, mode: str, orientation: int
    ) -> None:
        if not os.access("/proc/self/clear_refs", os.W_OK):
            self.skipTest("the peak of memory cannot be measured here")
        width, height = 8000, 5000
        values = np.full((height, width), 40000, np.uint16)
        image = Image.fromarray(values) if mode == "I;16" else Image.new(mode, (width, height), 99)
        tags = Image.Exif()
        tags[0x0112] = orientation
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1, exif=tags)
        command = [sys.executable, "-c", MEMORY_SCRIPT]
        result = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
        # Strips and the decoder itself take some memory, too, whatever the size of the image.
        self.assertLess(int(result.stdout), 11 * width * height + 50e6)


class OneColorTest(absltest.TestCase):
    def test_one_other_pixel_is_found(self) -> None:
        image = torch.full((3, 40, 50), 7, dtype=torch.uint8)
        self.assertTrue(decode.has_one_color(image))
        for position in ((0, 0, 0), (2, 39, 49), (1, 17, 16)):
            other = image.clone()
            other[position] = 8
            self.assertFalse(decode.has_one_color(other))


if __name__ == "__main__":
    absltest.main()
