"""An S3 server on the loopback that can do what real ones do on bad days.

It applies a write and loses the reply, refuses for a while, answers 409, forgets to check a condition,
lists what was there a moment ago, drips, or calls a token expired. Scripted, in memory, one bucket per
first path segment; it counts the requests of each kind.
"""

from __future__ import annotations

import bisect
import fnmatch
import hashlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

Kind = Literal[
    "apply then drop",
    "apply then 500",
    "apply then 503",
    "drop",
    "409",
    "plain 412",
    "ignore condition",
    "503",
    "500",
    "drip",
    "expired",
    "forbidden",
    "stale list",
    "hang",
    "slow",
]
_PAGE = 1000
_TICK_S = 0.02


@dataclass(slots=True)
class Fault:
    """What goes wrong with requests of one method on keys of one pattern, after `skip`, `times` times."""

    kind: Kind
    method: str = "PUT"
    pattern: str = "*"
    times: int = 1_000_000
    skip: int = 0
    seconds: float = 0.0

    def hits(self, method: str, key: str) -> bool:
        """Tell whether it strikes this request, and count it."""
        if method != self.method or not fnmatch.fnmatch(key, self.pattern) or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(slots=True)
class _Object:
    body: bytes
    etag: str
    headers: dict[str, str]
    modified: float


class FaultServer:
    """Use it as `with FaultServer() as server`; `server.endpoint` is its URL.

    It answers after `latency_s`, and sends `bytes_per_s` over each connection.
    """

    def __init__(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self.ranges: list[tuple[str, int, int]] = []
        self.times: list[tuple[float, float]] = []
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.objects: dict[str, _Object] = {}
        self._sorted: list[str] | None = None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.options = {"endpoint_url": self.endpoint, "key": "k", "secret": "s"}
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fill(self, keys: Iterable[str], body: bytes = b"x") -> None:
        """Put the same small object under many keys."""
        one = _Object(body, hashlib.md5(body).hexdigest(), {}, time.time())  # noqa: S324 - what S3 calls an ETag
        self.objects |= dict.fromkeys(keys, one)
        self._sorted = None

    def put(self, key: str, body: bytes, headers: dict[str, str]) -> _Object:
        """Store an object."""
        etag = hashlib.md5(body).hexdigest()  # noqa: S324 - see above
        self.objects[key] = _Object(body, etag, headers, time.time())
        self._sorted = None
        return self.objects[key]

    def remove(self, key: str) -> None:
        """Remove an object."""
        self.objects.pop(key, None)
        self._sorted = None

    def keys(self) -> list[str]:
        """Return every key, sorted."""
        if self._sorted is None:
            self._sorted = sorted(self.objects)
        return self._sorted

    def below(self, prefix: str) -> list[str]:
        """Return the keys below a prefix."""
        return [key for key in self.keys() if key.startswith(prefix)]

    def fault_for(self, method: str, key: str) -> Fault | None:
        """Return the fault that strikes a request."""
        return next((fault for fault in self.faults if fault.hits(method, key)), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: FaultServer
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def handle(self) -> None:
        """Serve until the other side has gone, which it may at any moment."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError, ValueError):
            self.close_connection = True

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.lstrip("/"))

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send(body)

    def _send(self, body: bytes) -> None:
        """Send a body as fast as the server is."""
        rate = self.server_of.bytes_per_s
        step = int(rate * _TICK_S) or max(len(body), 1)
        began = time.monotonic()
        for at in range(0, len(body), step):
            self.wfile.write(body[at : at + step])
            if rate:
                time.sleep(max(began + (at + step) / rate - time.monotonic(), 0))

    def _refuse(self, status: int, code: str, *, condition: bool = False) -> None:
        more = "<Condition>If-None-Match</Condition>" if condition else ""
        text = f"<Error><Code>{code}</Code><Message>{code}</Message>{more}</Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _strike(self, fault: Fault | None) -> bool:
        """Answer in the fault's way, if that is all that happens; say whether it was."""
        match fault.kind if fault else None:
            case "drop":
                self._drop()
            case "503":
                self._refuse(503, "SlowDown")
            case "500":
                self._refuse(500, "InternalError")
            case "409":
                self._refuse(409, "ConditionalRequestConflict")
            case "expired":
                self._refuse(400, "ExpiredToken")
            case "forbidden":
                self._refuse(403, "AccessDenied")
            case "hang":
                assert fault is not None
                time.sleep(fault.seconds)
                self._drop()
            case "slow":
                assert fault is not None
                time.sleep(fault.seconds)
                return False
            case _:
                return False
        return True

    def do_PUT(self) -> None:
        """Put, with conditions."""
        server, key = self.server_of, self._key()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with server.lock:
            server.requests["PUT"] += 1
            fault = server.fault_for("PUT", key)
        if self._strike(fault):
            return
        with server.lock:
            there = server.objects.get(key)
            kind = fault.kind if fault else ""
            if kind != "ignore condition":
                if self.headers.get("If-None-Match") == "*" and there:
                    self._refuse(412, "PreconditionFailed", condition=kind != "plain 412")
                    return
                wanted = self.headers.get("If-Match")
                if wanted and (there is None or wanted.strip('"') != there.etag):
                    self._refuse(412 if there else 404, "PreconditionFailed" if there else "NoSuchKey")
                    return
            marks = {
                name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")
            }
            stored = server.put(key, body, marks)
        if kind == "apply then drop":
            self._drop()
        elif kind in {"apply then 500", "apply then 503"}:
            self._refuse(int(kind[-3:]), "InternalError" if kind.endswith("500") else "SlowDown")
        else:
            self._answer(200, headers={"ETag": f'"{stored.etag}"'})

    def do_GET(self) -> None:
        """Get an object, a piece of one, or a page of a listing."""
        self.began = time.monotonic()
        time.sleep(self.server_of.latency_s)
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query)
        else:
            self._get("GET")

    def do_HEAD(self) -> None:
        """Get the headers of an object."""
        time.sleep(self.server_of.latency_s)
        self._get("HEAD")

    def do_DELETE(self) -> None:
        """Delete."""
        server, key = self.server_of, self._key()
        with server.lock:
            server.requests["DELETE"] += 1
            if not self._strike(server.fault_for("DELETE", key)):
                server.remove(key)
                self._answer(204)

    def do_POST(self) -> None:
        """Delete several objects."""
        server, bucket = self.server_of, self._key().split("/")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", body)]
        with server.lock:
            server.requests["DELETE"] += 1
            if self._strike(next((f for key in keys if (f := server.fault_for("DELETE", key))), None)):
                return
            for key in keys:
                server.remove(f"{bucket}/{key}")
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(
            200, f"<DeleteResult>{gone}</DeleteResult>".encode(), {"Content-Type": "application/xml"}
        )

    def _get(self, method: str) -> None:
        server, key = self.server_of, self._key()
        with server.lock:
            server.requests[method] += 1
            fault = server.fault_for(method, key)
            there = server.objects.get(key)
        if self._strike(fault):
            return
        if there is None:
            self._refuse(404, "NoSuchKey")
            return
        wanted = self.headers.get("If-Match")
        if wanted and wanted.strip('"') != there.etag:
            self._refuse(412, "PreconditionFailed")
            return
        headers = {
            "ETag": f'"{there.etag}"',
            "Last-Modified": formatdate(there.modified, usegmt=True),
            **there.headers,
        }
        body, status = there.body, 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1 if last else len(body)
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
            body, status = body[start:stop], 206
            asked_for = (key, start, stop)
        headers["Content-Length"] = str(len(body))
        if fault and fault.kind == "drip":
            self._drip(status, body, headers, fault.seconds)
        else:
            self._answer(status, body, headers)
        if asked:
            with server.lock:
                server.ranges.append(asked_for)
                server.times.append((self.began, time.monotonic()))

    def _drip(self, status: int, body: bytes, headers: dict[str, str], seconds: float) -> None:
        """Send a body byte by byte, for so long, and then hang up."""
        self._answer(status, b"", headers)
        end = time.monotonic() + seconds
        for index in range(len(body)):
            if time.monotonic() > end:
                break
            self.wfile.write(body[index : index + 1])
            self.wfile.flush()
            time.sleep(0.2)
        self._drop()

    def _list(self, query: dict[str, list[str]]) -> None:
        server, bucket = self.server_of, self._key().split("/")[0]
        prefix = f"{bucket}/{query.get('prefix', [''])[0]}"
        with server.lock:
            server.requests["LIST"] += 1
            fault = server.fault_for("LIST", prefix)
            if self._strike(fault):
                return
            keys = server.keys()
            after = query.get("continuation-token", query.get("start-after", [""]))[0]
            at = bisect.bisect_right(keys, f"{bucket}/{after}") if after else bisect.bisect_left(keys, prefix)
            page = []
            for key in keys[at : at + _PAGE + 1]:
                if not key.startswith(prefix):
                    break
                page.append(key)
            more = len(page) > _PAGE
            page = page[:_PAGE]
            if fault and fault.kind == "stale list":
                horizon = time.time() - fault.seconds
                page = [key for key in page if server.objects[key].modified < horizon]
            rows = "".join(_row(key.partition("/")[2], server.objects[key]) for key in page)
        token = (
            f"<NextContinuationToken>{escape(page[-1].partition('/')[2])}</NextContinuationToken>"
            if more
            else ""
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
            f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
            f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{rows}</ListBucketResult>"
        )
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})


def _row(key: str, there: _Object) -> str:
    when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(there.modified))
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
        f"<ETag>&quot;{there.etag}&quot;</ETag><Size>{len(there.body)}</Size></Contents>"
    )
