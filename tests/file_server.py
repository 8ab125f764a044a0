"""A web server on this machine with one file, which may interrupt, ignore ranges, or misreport."""

import http.server
import threading
from typing import Any


class FileServer(http.server.ThreadingHTTPServer):
    """Serves a file until `close`.

    ranges: whether it supports them.
    most: bytes of a response before it ends early.
    announced: size in the headers; None for no size.
    requests: value of the Range header of each request.
    """

    def __init__(self, name: str, content: bytes) -> None:
        """Starts to serve content at `url`, which ends with the name."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/{name}"
        self.path, self.content = f"/{name}", content
        self.ranges = True
        self.most = len(content)
        self.announced: int | None = len(content)
        self.requests: list[str | None] = []
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FileServer)
        asked = self.headers.get("Range")
        server.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path != server.path:
            self.send_error(404)
            return
        if not server.ranges:
            start = 0
        size = len(server.content)
        if start >= size:
            self.send_error(416)
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if server.announced is not None:
            self.send_header("Content-Length", str(server.announced - start))
        self.end_headers()
        self.wfile.write(server.content[start:][: server.most])

    def log_message(self, *arguments: Any) -> None:
        """Prints nothing."""
