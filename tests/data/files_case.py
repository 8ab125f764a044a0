"""A test case with a folder of images."""

import os

from absl.testing import parameterized
from PIL import Image

from jigclu.data.sources import Source


class FilesTestCase(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = self.create_tempdir().full_path

    def add(self, *files: str) -> None:
        """Writes one image per name; its gray value is the length of the name."""
        for file in files:
            path = os.path.join(self.root, file)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Image.new("RGB", (6, 4), (len(file),) * 3).save(path)

    def names(self, source: Source) -> list[str]:
        return [os.path.relpath(source.name(index), self.root) for index in range(len(source))]
