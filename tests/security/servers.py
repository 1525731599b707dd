"""Small servers that the tests talk to: they write down what they hear, and answer as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Heard:
    """A request: its first line, its headers as text, and its body."""

    line: str
    headers: str
    body: bytes


@dataclass
class Server:
    """Where a server is, and what it has heard."""

    port: int
    requests: list[Heard] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[Heard], tuple[int, bytes]]) -> Iterator[Server]:
    """Run an HTTP server on a free port of this machine; `answer` gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            """Write the request down, and answer it."""
            size = int(self.headers.get("Content-Length") or 0)
            heard = Heard(self.requestline, str(self.headers), self.rfile.read(size))
            server.requests.append(heard)
            status, body = answer(heard)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
