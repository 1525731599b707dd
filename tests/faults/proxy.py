"""A proxy on the loopback between a client and a real server: it forwards a request, and spoils the reply."""

from __future__ import annotations

import http.client
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(slots=True)
class Spoil:
    """What happens to the next `times` requests of some methods whose path holds a text."""

    kind: str
    text: str
    times: int
    methods: tuple[str, ...] = ("PUT", "POST")


@dataclass(slots=True)
class FaultProxy:
    """Use it as `with FaultProxy(upstream) as proxy`; `proxy.endpoint` stands for the server."""

    upstream: str
    spoils: list[Spoil] = field(default_factory=list)
    spoiled: int = 0
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _http: Any = None

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def spoil_for(self, method: str, path: str, body: bytes) -> str:
        """Return how a request is spoiled, and count it."""
        with self.lock:
            for spoil in self.spoils:
                named = spoil.text in path or spoil.text.encode() in body[:400]
                if spoil.times and method in spoil.methods and named:
                    spoil.times -= 1
                    self.spoiled += 1
                    return spoil.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def handle(self) -> None:
        """Serve until the other side has gone."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError, ValueError):
            self.close_connection = True

    def _forward(self) -> None:
        body = self._body()
        kind = self.proxy.spoil_for(self.command, self.path, body)
        if kind == "drop":
            self._drop()
            return
        if kind in {"500", "503"}:
            self._answer(int(kind), b"", [])
            return
        there = urlsplit(self.proxy.upstream)
        upstream = http.client.HTTPConnection(there.hostname or "", there.port, timeout=30)
        framing = {"transfer-encoding", "content-length"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in framing}
        if body or self.command == "PUT":
            headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body=body or None, headers=headers)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        if kind == "apply then drop":
            self._drop()
        elif kind:
            self._answer(int(kind[-3:]), b"", [])
        else:
            self._answer(reply.status, data, reply.getheaders())

    do_GET = _forward  # noqa: N815 - the library asks for these names
    do_HEAD = _forward  # noqa: N815
    do_PUT = _forward  # noqa: N815
    do_POST = _forward  # noqa: N815
    do_DELETE = _forward  # noqa: N815
    do_PATCH = _forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, data: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in {"transfer-encoding", "content-length", "connection", "date", "server"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
