"""Downloads from a server on this machine that interrupts, forgets ranges or lies about sizes."""

import contextlib
import io
import threading
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jigclu.system import progress
from jigclu.system.download import PARTIAL_SUFFIX, download
from jigclu.system.errors import UserError
from tests.file_server import FileServer
from tests.folder_case import FolderTestCase

CONTENT = np.random.default_rng(0).bytes(300_000)


class DownloadTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = FileServer("weights.pth", CONTENT)
        self.addCleanup(self.server.close)
        self.url = self.server.url
        self.path = self.folder / "cache" / "weights.pth"
        self.partial = self.path.with_name(f"weights.pth{PARTIAL_SUFFIX}")

    def download(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            download(self.url, self.path)

    def assert_complete(self) -> None:
        self.assertEqual(self.path.read_bytes(), CONTENT)
        self.assertFalse(self.partial.exists())

    def rejected(self) -> str:
        with self.assertRaises(UserError) as caught:
            self.download()
        self.assertFalse(self.path.exists())
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_downloads_once(self) -> None:
        self.download()
        self.assert_complete()
        self.download()
        self.assertEqual(self.server.requests, [None])

    def test_interruptions_resume_where_they_happened(self) -> None:
        self.server.most = 100_001
        self.download()
        self.assert_complete()
        self.assertEqual(self.server.requests, [None, "bytes=100001-", "bytes=200002-"])

    def test_a_later_command_resumes(self) -> None:
        self.path.parent.mkdir()
        self.partial.write_bytes(CONTENT[:12_345])
        self.download()
        self.assert_complete()
        self.assertEqual(self.server.requests, ["bytes=12345-"])

    def test_a_server_without_ranges_starts_again(self) -> None:
        self.path.parent.mkdir()
        self.partial.write_bytes(b"of another version")
        self.server.ranges = False
        self.download()
        self.assert_complete()

    def test_an_endless_interruption_is_reported_and_keeps_what_arrived(self) -> None:
        self.server.ranges, self.server.most = False, 100_000
        message = self.rejected()
        self.assertIn("the connection ended after 100,000 of 300,000 bytes", message)
        self.assertIn(f"store it as {self.path}", message)
        self.assertEqual(self.partial.read_bytes(), CONTENT[:100_000])
        self.server.ranges = True
        self.download()
        self.assert_complete()

    def test_too_few_bytes_are_rejected(self) -> None:
        self.server.ranges, self.server.announced = False, len(CONTENT) + 7
        self.assertIn("after 300,000 of 300,007 bytes", self.rejected())

    def test_an_unknown_size_is_rejected(self) -> None:
        self.server.announced = None
        self.assertIn("does not announce the size", self.rejected())

    @parameterized.parameters(0, 5)
    def test_a_partial_file_that_is_too_long_is_replaced(self, more: int) -> None:
        self.path.parent.mkdir()
        self.partial.write_bytes(b"x" * (len(CONTENT) + more))
        self.download()
        self.assert_complete()

    def test_a_missing_file_is_one_request_and_names_the_url(self) -> None:
        self.url = self.url.replace("weights", "none")
        message = self.rejected()
        self.assertStartsWith(message, f"{self.url} cannot be downloaded (HTTP Error 404")
        self.assertLen(self.server.requests, 1)

    def test_without_a_network_the_message_says_where_to_put_the_file(self) -> None:
        self.url = "http://127.0.0.1:9/weights.pth"  # Nothing listens at this port.
        message = self.rejected()
        self.assertIn(self.url, message)
        self.assertIn(
            f"on a machine with a network connection and store it as {self.path}", message
        )

    def test_several_processes_download_once(self) -> None:
        threads = [threading.Thread(target=download, args=(self.url, self.path)) for _ in range(4)]
        with contextlib.redirect_stderr(io.StringIO()):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assert_complete()
        self.assertEqual(self.server.requests, [None])

    def test_progress_counts_up_to_the_size(self) -> None:
        works: list[progress.Work] = []
        status = progress.status

        @contextlib.contextmanager
        def recorded(*arguments: Any, **options: Any) -> Any:
            with status(*arguments, **options) as work:
                works.append(work)
                yield work

        with absltest.mock.patch.object(progress, "status", recorded):
            self.download()
        self.assertEqual([(work.done, work.total) for work in works], [(300, 300)])


if __name__ == "__main__":
    absltest.main()
