"""Pushes a run's metrics to a Prometheus Pushgateway. Never in the way of the run."""

from __future__ import annotations

import base64
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from prometheus_client import delete_from_gateway, push_to_gateway, pushadd_to_gateway

from batchinfer.errors import JobFileError
from batchinfer.events import Event, RunFailed, RunFinished, RunStarted
from batchinfer.telemetry import figures
from batchinfer.telemetry.metrics import registry_of
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from batchinfer.config.observe import PushgatewayOptions
    from batchinfer.telemetry.last_run import LastRun
    from batchinfer.telemetry.metrics import RunMetrics


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a push would become a plain GET of a login page, and look like a success."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing, so that the redirect is an error."""


class _NoGatewayError(OSError):
    """Whatever answers, it is no Pushgateway."""


class Pushgateway:
    """Pushes at an interval under the grouping key of job and instance, and deletes that group once
    the run has succeeded: nobody else would, and it would be there for ever.

    How the run ended goes to the group of the job alone, as a few metrics that stay; so the time of the
    last success survives a run that fails, whose own group stays as it was. A run that fails before it
    began has no group of its own, and tells the job's of its end. A gateway that is gone, slow
    or wrong costs one call of `warn`. `index` is this process's among those of the job, if it has
    one: without an `instance`, it is what names the group, which the next run takes over.
    Raises JobFileError for a URL that names no host, and for certificates that cannot be read.
    """

    def __init__(
        self,
        options: PushgatewayOptions,
        *,
        job: str,
        metrics: RunMetrics,
        last_run: LastRun,
        warn: Callable[[str], None],
        index: int | None = None,
    ) -> None:
        url = _parsed(options.url)
        self._login = _login(options, url)
        self._host = url.netloc.rpartition("@")[2]
        self._url = urllib.parse.urlunsplit((url.scheme, self._host, url.path, "", ""))
        # Without an own file, the certificates of the system; read only where there are any to check.
        tls = [urllib.request.HTTPSHandler(context=_context(options.ca))] if options.ca else []
        self._opener = urllib.request.build_opener(_StayHere, *tls)
        self._every_s = options.every
        self._timeout_s = options.timeout
        self._job = job
        self._key = {"instance": options.instance or instance_name(index)}
        self._live, self._end = registry_of(metrics), registry_of(last_run)
        self._last_run = last_run
        self._warn = warn
        self._warned = False
        self._finished: RunFinished | None = None
        self._ticker = Ticker(self._push, every_s=options.every, name="pushgateway")

    def on_event(self, event: Event) -> None:
        """Begin to push when the run begins, or never will; note how it ends."""
        if isinstance(event, RunStarted):
            self._finished = None
            self._ticker.start()
        elif isinstance(event, RunFailed) and self._last_run.never_began:
            self._ticker.start()
        elif isinstance(event, RunFinished):
            self._finished = event

    def close(self) -> None:
        """Push for the last time; wait for it no longer than the timeout."""
        if not self._ticker.stop(self._timeout_s):
            self._complain("no answer in time; the last figures may be missing there")

    def _push(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        to: dict[str, Any] = {
            "gateway": self._url,
            "job": self._job,
            "timeout": self._timeout_s,
            "handler": self._send,
        }
        finished = self._finished if last else None
        never_began = self._last_run.never_began
        try:
            if not never_began and (finished is None or finished.exit_code):
                push_to_gateway(**to, registry=self._live, grouping_key=self._key)
            if last and self._last_run.is_told:
                # Added, so that the time of the last success stays where this run is none.
                pushadd_to_gateway(**to, registry=self._end)
            if finished is not None and not finished.exit_code:
                delete_from_gateway(**to, grouping_key=self._key)
        except Exception as error:  # noqa: BLE001 - whatever a gateway does, the run goes on
            again = "" if last else f"; tried again every {self._every_s:g} s"
            self._complain(f"{_why(error)}{again}")

    def _send(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        """Make one request, with the login that the job has for it, to that URL and no other."""
        request = urllib.request.Request(url, data, dict(headers), method=method)  # noqa: S310 - http or https
        if self._login:
            request.add_header("Authorization", self._login)

        def send() -> None:
            with self._opener.open(request, timeout=timeout) as answer:
                if answer.read(1):
                    raise _NoGatewayError("it answers with a page, as no Pushgateway does")

        return send

    def _complain(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            then = "how it ended is not told there" if self._last_run.never_began else "the run goes on"
            self._warn(f"cannot push metrics to {self._host}: {why}; {then}")


def instance_name(index: int | None) -> str:
    """Return what a process is called among those of its job: by its index, or its host."""
    return socket.gethostname() if index is None else f"index-{index}"


def _login(options: PushgatewayOptions, url: urllib.parse.SplitResult) -> str:
    """Return the Authorization header; nothing where nobody logs in."""
    if options.token is not None:
        return f"Bearer {options.token}"
    user, password = (urllib.parse.unquote(part or "") for part in (url.username, url.password))
    if options.user is not None:
        user, password = options.user, options.password or ""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else ""


def _context(ca: str) -> ssl.SSLContext:
    """Return a context that trusts the certificates in a file, and no others."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        why = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no PEM certificates"
        raise JobFileError(
            f"observe.pushgateway.ca cannot be read ({ca}: {why})",
            hint="name a PEM file with the certificates that sign the gateway's",
        ) from None


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
        case _NoGatewayError():
            return str(error)
        case HTTPException():
            return f"its answer is not HTTP ({type(error).__name__})"
        case URLError(reason=OSError() as cause):
            return _why(cause)
        case OSError():
            return error.strerror or str(error) or type(error).__name__
        case _:
            return figures.plain(f"{type(error).__name__}: {error}", longest=200)
