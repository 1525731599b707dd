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

from prometheus_client import delete_from_gateway, push_to_gateway, pushadd_to_gateway

from batchinfer.errors import JobFileError
from batchinfer.events import Event, RunFinished, RunStarted
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
    """Pushes at an interval under the grouping key of job and instance, and deletes that group once
    the run has succeeded: nobody else would, and it would be there for ever.

    What a complete run came to stays in the group of the job alone, so that the time of the last
    success survives a run that fails, whose own group stays as it was. A gateway that is gone, slow
    or wrong costs one call of `warn`. `index` is this process's among those of the job, if it has
    one: without an `instance`, it is what names the group, which the next run takes over.
    Raises JobFileError for a URL that names no host.
    """

    def __init__(
        self,
        options: PushgatewayOptions,
        *,
        job: str,
        registry: CollectorRegistry,
        warn: Callable[[str], None],
        index: int | None = None,
    ) -> None:
        url = _parsed(options.url)
        user, password = (urllib.parse.unquote(part or "") for part in (url.username, url.password))
        self._login = base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
        self._host = url.netloc.rpartition("@")[2]
        self._url = urllib.parse.urlunsplit((url.scheme, self._host, url.path, "", ""))
        self._every_s = options.every
        self._timeout_s = options.timeout
        self._job = job
        name = socket.gethostname() if index is None else f"index-{index}"
        self._key = {"instance": options.instance or name}
        self._registry = registry
        self._warn = warn
        self._warned = False
        self._finished: RunFinished | None = None
        self._ticker = Ticker(self._push, every_s=options.every, name="pushgateway")

    def on_event(self, event: Event) -> None:
        """Begin to push when the run begins; note how it ends."""
        if isinstance(event, RunStarted):
            self._finished = None
            self._ticker.start()
        elif isinstance(event, RunFinished):
            self._finished = event

    def close(self) -> None:
        """Push for the last time; wait for it no longer than the timeout."""
        if not self._ticker.stop(self._timeout_s):
            self._complain("no answer in time; the last figures may be missing there")

    def _push(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        try:
            if last and self._finished is not None and self._finished.exit_code == 0:
                self._settle(complete=self._finished.complete)
            else:
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

    def _settle(self, *, complete: bool) -> None:
        """Leave the figures of a complete run under the job's name, then delete the group of this one."""
        if complete:
            push_to_gateway(
                self._url,
                job=self._job,
                registry=self._registry,
                timeout=self._timeout_s,
                handler=self._send,
            )
        delete_from_gateway(
            self._url, job=self._job, grouping_key=self._key, timeout=self._timeout_s, handler=self._send
        )

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
