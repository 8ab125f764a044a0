"""A test case with a temporary folder."""

from pathlib import Path

from absl.testing import parameterized


class FolderTestCase(parameterized.TestCase):
    """Has an empty folder for every test."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
