"""Image files that are none, or take more memory than they should."""

import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from absl.testing import absltest
from PIL import Image

from jigclu.data.decode import USUAL_DECODING, UnreadableImageError, decode_image, read_size
from jigclu.data.folders import UnlabeledImages
from jigclu.data.image_files import is_image
from tests.folder_case import FolderTestCase

# Decodes a file from standard input with at most a million pixels; prints the reason why it is
# unreadable, and the memory that it took, in MB.
DECODE = """
import dataclasses, resource, sys
from jigclu.data.decode import USUAL_DECODING, UnreadableImageError, decode_image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

data, before = sys.stdin.buffer.read(), peak()
try:
    decode_image(data, decoding=dataclasses.replace(USUAL_DECODING, most_pixels=10**6))
except UnreadableImageError as error:
    print(error)
print(peak() - before)
"""


def _png(side: int) -> bytes:
    """Returns a black RGB image, which compresses a thousandfold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (1 + 3 * side)), 9)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


class UntrustedImagesTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        Image.new("RGB", (8, 8)).save(self.folder / "image.png")

    def test_only_regular_files_are_listed(self) -> None:
        for name in ("pipe", "pipe.png"):
            os.mkfifo(self.folder / name)
        (self.folder / "to_pipe.png").symlink_to("pipe")
        (self.folder / "zero.png").symlink_to("/dev/zero")
        (self.folder / "zero").symlink_to("/dev/zero")
        (self.folder / "folder.png").mkdir()
        source = UnlabeledImages(str(self.folder))
        self.assertEqual([Path(source.name(n)).name for n in range(len(source))], ["image.png"])
        self.assertIn("left out 5 files that are not images", source.notes[0])

    def test_files_that_are_replaced_after_listing_are_unreadable(self) -> None:
        source = UnlabeledImages(str(self.folder))
        path = self.folder / "image.png"
        for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
            path.unlink()
            replace(path)
            with self.assertRaisesRegex(UnreadableImageError, "Not a regular file|Is a directory"):
                source.read(0)
            with self.assertRaises(UnreadableImageError):
                read_size(str(path))
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        self.assertFalse(is_image(str(pipe)))

    def test_files_above_the_limit_are_not_read(self) -> None:
        source = UnlabeledImages(str(self.folder))
        # A sparse file, which takes no space on the disk.
        os.truncate(self.folder / "image.png", USUAL_DECODING.most_bytes + 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with self.assertRaisesRegex(UnreadableImageError, "bytes are more than decoding.most_by"):
            source.read(0)
        self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 50_000)

    def test_images_above_the_limit_take_no_memory(self) -> None:
        data = _png(6000)
        self.assertLess(len(data), 150_000)
        command = [sys.executable, "-c", DECODE]
        printed = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        reason, megabytes = printed.decode().splitlines()
        self.assertStartsWith(reason, "6000x6000 pixels are more than decoding.most_pixels")
        # Decoded, it would take 250.
        self.assertLess(float(megabytes), 30)

    def test_images_never_start_another_program(self) -> None:
        # Pillow has Ghostscript interpret them.
        postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        with self.assertRaisesRegex(UnreadableImageError, "cannot identify image file"):
            decode_image(postscript)


if __name__ == "__main__":
    absltest.main()
