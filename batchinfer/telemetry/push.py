"""Pushes a run's metrics to a Prometheus Pushgateway. Never in the way of the run."""

from __future__ import annotations

import base64
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from prometheus_client import pushadd_to_gateway

from batchinfer.errors import JobFileError
from batchinfer.events import Event, RunStarted
from batchinfer.telemetry import figures
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from batchinfer.config.sections import PushgatewayOptions


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a push would become a plain GET of a login page, and look like a success."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing, so that the redirect is an error."""


class Pushgateway:
    """Pushes at an interval and once at the end, under the grouping key of job and instance.

    Each push adds to its group instead of replacing it, so that the time of the last success
    survives a run that fails. A gateway that is gone, slow or wrong costs one call of `warn`.
    Raises JobFileError for a URL that names no host.
    """

    def __init__(
        self,
        options: PushgatewayOptions,
        *,
        job: str,
        registry: CollectorRegistry,
        warn: Callable[[str], None],
    ) -> None:
        url = _parsed(options.url)
        user, password = (urllib.parse.unquote(part or "") for part in (url.username, url.password))
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self._host = url.netloc.rpartition("@")[2]
        self._url = urllib.parse.urlunsplit((url.scheme, self._host, url.path, "", ""))
        self._every_s = options.every
        self._timeout_s = options.timeout
        self._job = job
        self._key = {"instance": options.instance or socket.gethostname()}
        self._registry = registry
        self._warn = warn
        self._warned = False
        self._ticker = Ticker(self._push, every_s=options.every, name="pushgateway")

    def on_event(self, event: Event) -> None:
        """Begin to push when the run begins."""
        if isinstance(event, RunStarted):
            self._ticker.start()

    def close(self) -> None:
        """Push for the last time; wait for it no longer than the timeout."""
        if not self._ticker.stop(self._timeout_s):
            self._complain("no answer in time; the last figures may be missing there")

    def _push(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        try:
            pushadd_to_gateway(
                self._url,
                job=self._job,
                registry=self._registry,
                grouping_key=self._key,
                timeout=self._timeout_s,
                handler=self._send,
            )
        except Exception as error:  # noqa: BLE001 - whatever a gateway does, the run goes on
            again = "" if last else f"; tried again every {self._every_s:g} s"
            self._complain(f"{_why(error)}{again}")

    def _send(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        """Make one request, with the user and password that the URL had, to that URL and no other."""
        request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310 - http or https
        if self._login:
            request.add_header("Authorization", f"Basic {self._login}")

        def send() -> None:
            urllib.request.build_opener(_StayHere).open(request, timeout=timeout).close()

        return send

    def _complain(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"cannot push metrics to {self._host}: {why}; the run goes on")


def _parsed(url: str) -> urllib.parse.SplitResult:
    """Take a URL apart; one that cannot be is refused now, and not shown: it may hold a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.hostname and (parts.port is None or parts.port):
            return parts
    except ValueError:
        pass
    raise JobFileError(
        "observe.pushgateway.url names no host, or a port that is none",
        hint="write http://HOST:PORT, such as http://pushgateway:9091",
    )


def _why(error: Exception) -> str:
    """Say in a few words what was wrong, without the URL."""
    match error:
        case HTTPError():
            return f"it answers HTTP {error.code}"
        case HTTPException():
            return f"its answer is not HTTP ({type(error).__name__})"
        case URLError(reason=OSError() as cause):
            return _why(cause)
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case _:
            return figures.plain(f"{type(error).__name__}: {error}", longest=200)
