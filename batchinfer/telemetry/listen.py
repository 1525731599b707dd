"""Answers those who ask a run how it is: Prometheus, and whoever watches over pods."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from batchinfer.telemetry.metrics import registry_of

if TYPE_CHECKING:
    from batchinfer.events import Event
    from batchinfer.telemetry.metrics import RunMetrics
    from batchinfer.telemetry.tally import Tally

_PATIENCE_S = 5.0
_POLL_S = 0.05  # how long the end of the run waits for it
_MOST_CALLERS = 16
_TEXT = "text/plain; charset=utf-8"


class Listener:
    """Serves `/metrics`, `/healthz` (the process lives) and `/readyz` (a worker has its model) on one address
    and no other, from threads of its own. Raises OSError where it cannot be had."""

    def __init__(self, address: str, *, tally: Tally, metrics: RunMetrics) -> None:
        registry = registry_of(metrics)
        host, _, port = address.rpartition(":")
        self._server = _Server(
            (host.strip("[]"), int(port)),
            {
                "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry)),
                "/healthz": lambda: (200, _TEXT, b"ok\n"),
                "/readyz": lambda: _readiness(tally),
            },
        )
        bound = self._server.server_name
        self.url = f"http://{f'[{bound}]' if ':' in bound else bound}:{self._server.server_port}"
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(_POLL_S,), name="listen", daemon=True)
        self._thread.start()

    def on_event(self, event: Event) -> None:
        """Do nothing: who asks is answered from the tally."""

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_PATIENCE_S)


_Answer = Callable[[], tuple[int, str, bytes]]


def _readiness(tally: Tally) -> tuple[int, str, bytes]:
    ready = sum(worker.state == "running" for worker in tally.snapshot().workers)
    if ready:
        return 200, _TEXT, f"workers with their model: {ready}\n".encode()
    return 503, _TEXT, b"no worker has its model\n"


class _Server(ThreadingHTTPServer):
    """Answers a few callers at once; more are sent away, so that nobody can hold up the run."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], answers: dict[str, _Answer]) -> None:
        self.answers = answers
        self._room = threading.BoundedSemaphore(_MOST_CALLERS)
        family, _, _, _, found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        super().__init__(found[:2], _Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        """Bind, without asking a name server what we are called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where there is room for one."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in the thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a caller who hangs up is no event of the run."""


class _Handler(BaseHTTPRequestHandler):
    """One caller, who has a few seconds."""

    server: _Server
    timeout = _PATIENCE_S
    server_version, sys_version = "batchinfer", ""

    def do_GET(self) -> None:
        """Answer with what there is under a path."""
        answer = self.server.answers.get(self.path.partition("?")[0])
        code, kind, body = answer() if answer else (404, _TEXT, b"there are /metrics, /healthz and /readyz\n")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing: standard error belongs to the run."""
