"""Downloads from a server on this machine that interrupts, forgets ranges or lies about sizes."""

import contextlib
import http.server
import io
import threading
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jigclu.system import progress
from jigclu.system.download import PARTIAL_SUFFIX, download
from jigclu.system.errors import UserError
from tests.folder_case import FolderTestCase

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT as /weights.pth.

    ranges: whether it supports them.
    most: bytes of a response before it ends early.
    announced: size in the headers; None for no size.
    requests: value of the Range header of each request.
    """

    ranges = True
    most = len(CONTENT)
    announced: int | None = len(CONTENT)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[str | None] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        if not server.ranges:
            start = 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if server.announced is not None:
            self.send_header("Content-Length", str(server.announced - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: server.most])

    def log_message(self, *arguments: Any) -> None:
        """Prints nothing."""


class DownloadTest(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = Server()
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights.pth"
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
