"""Dry runs neither download nor write."""

from absl.testing import absltest

from jigclu.system import download, dry_run, files
from tests.folder_case import FolderTestCase


class DryRunTest(FolderTestCase):
    def test_downloads_are_reported_only_during_a_dry_run(self) -> None:
        dry_run.check_download("photos", "data")
        with dry_run.dry_run():
            self.assertTrue(dry_run.is_dry_run())
            with self.assertRaisesRegex(dry_run.DownloadNeeded, "^downloads: photos to data$"):
                dry_run.check_download("photos", "data")
        self.assertFalse(dry_run.is_dry_run())
        dry_run.check_download("photos", "data")

    def test_nothing_is_downloaded_or_written(self) -> None:
        path = self.folder / "weights" / "a.pth"
        with dry_run.dry_run():
            with self.assertRaises(dry_run.DownloadNeeded):
                download.download("https://example.org/a.pth", path)
            with self.assertRaises(AssertionError):
                files.write_atomically(self.folder / "a.txt", lambda file: file.write(b"a"))
        self.assertEmpty(list(self.folder.iterdir()))


if __name__ == "__main__":
    absltest.main()
