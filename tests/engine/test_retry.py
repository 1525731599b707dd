"""Which errors are worth another attempt, and how long is waited for it."""

from __future__ import annotations

import errno
import http.client
import socket
import sqlite3
import threading
import urllib.error
from email.message import Message
from typing import Any

import pytest

from batchinfer.config.nested import RetryOptions
from batchinfer.engine.retry import Retry
from batchinfer.errors import BatchinferError, DataError, Interrupted, UserCodeError
from batchinfer.transient import reason_of


class FakeClock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """Return it."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.time += seconds


def foreign(module: str, name: str, *bases: type[Exception], **attributes: Any) -> Exception:
    """Make an error of a library that need not be installed."""
    cls = type(name, bases or (Exception,), {"__module__": module, **attributes})
    error: Exception = cls("busy, timeout, connection reset")
    return error


def http_error(status: int) -> Exception:
    """Make an error of urllib's."""
    return urllib.error.HTTPError("http://x", status, "", Message(), None)


def response(status: int) -> Any:
    """Make what requests and httpx hang on their errors."""
    return type("Response", (), {"status_code": status})()


def locked() -> Exception:
    """Make SQLite raise that a database is locked."""
    one, two = (sqlite3.connect("file:e3?mode=memory&cache=shared", uri=True, timeout=0) for _ in range(2))
    one.execute("create table t (x)")
    one.commit()
    one.execute("begin exclusive")
    try:
        two.execute("insert into t values (1)")
    except sqlite3.OperationalError as error:
        return error
    finally:
        one.close()
        two.close()
    raise AssertionError("it was not locked")


PASSING = [
    (TimeoutError(), "timeout"),
    (ConnectionResetError(), "connection"),
    (BrokenPipeError(), "connection"),
    (http.client.RemoteDisconnected(""), "connection"),
    (http.client.IncompleteRead(b""), "connection"),
    (OSError(errno.EHOSTUNREACH, "no route"), "connection"),
    (OSError(errno.ETIMEDOUT, "late"), "timeout"),
    (OSError(errno.EBUSY, "busy"), "busy"),
    (socket.gaierror(socket.EAI_AGAIN, "later"), "connection"),
    (urllib.error.URLError(ConnectionRefusedError()), "connection"),
    (http_error(429), "throttled"),
    (http_error(503), "server"),
    (http_error(504), "timeout"),
    (foreign("requests.exceptions", "HTTPError", response=response(502)), "server"),
    (
        foreign(
            "requests.exceptions", "ReadTimeout", type("Timeout", (Exception,), {"__module__": "requests"})
        ),
        "timeout",
    ),
    (
        foreign("httpx", "ConnectError", type("NetworkError", (Exception,), {"__module__": "httpx"})),
        "connection",
    ),
    (foreign("aiohttp", "ClientResponseError", status=429), "throttled"),
    (foreign("openai", "RateLimitError", status_code=429), "throttled"),
    (
        foreign("botocore.exceptions", "ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 503}}),
        "server",
    ),
    (
        foreign("grpc._channel", "_InactiveRpcError", code=lambda _: type("C", (), {"name": "UNAVAILABLE"})),
        "connection",
    ),
]
LASTING = [
    ValueError("timeout, 503, connection reset by peer"),
    FileNotFoundError(errno.ENOENT, "timed out"),
    PermissionError(errno.EACCES, "try again"),
    socket.gaierror(socket.EAI_NONAME, "unknown"),
    http_error(404),
    http_error(400),
    foreign("openai", "BadRequestError", status_code=400),
    foreign("requests.exceptions", "InvalidURL"),
    foreign("mine", "Timeout"),
    foreign("grpc._channel", "_InactiveRpcError", code=lambda _: type("C", (), {"name": "NOT_FOUND"})),
    MemoryError(),
]


@pytest.mark.parametrize(("error", "reason"), PASSING, ids=lambda value: type(value).__name__)
def test_passing_errors(error: Exception, reason: str) -> None:
    """They are told by type and number, also as the cause of an error of ours."""
    assert reason_of(error) == reason
    ours = UserCodeError("a step raised")
    ours.__cause__ = error
    assert reason_of(ours) == reason


@pytest.mark.parametrize("error", LASTING, ids=lambda value: type(value).__name__)
def test_lasting_errors(error: Exception) -> None:
    """No word in a text makes another attempt worth it."""
    assert reason_of(error) is None


def test_a_locked_database() -> None:
    """SQLite has one class for all: its number tells."""
    assert reason_of(locked()) == "busy"


def failing(causes: list[Exception]) -> Any:
    """Return a call that fails for these reasons, one after the other, and then goes well."""

    def call() -> str:
        if not causes:
            return "well"
        raise DataError("it failed") from causes.pop(0)

    return call


def first(call: Any) -> BatchinferError:
    """Return the error of a first attempt."""
    with pytest.raises(DataError) as caught:
        call()
    return caught.value


def test_waits_double_and_differ() -> None:
    """Up to half a second, one second, two, ... and at most thirty; each is drawn anew. As many attempts as
    the options say, for each kind of reason."""
    clock = FakeClock()
    heard: list[str] = []
    retry = Retry(RetryOptions(transient=9, timeout=1), on_retry=heard.append, clock=clock)
    call = failing([TimeoutError(), *[ConnectionError()] * 9])
    assert retry.again(first(call), call) == "well"
    assert heard == ["timeout", *["connection"] * 9]
    assert 0 < clock.time < 0.5 + 1 + 2 + 4 + 8 + 16 + 4 * 30
    waits = set()
    for _ in range(20):
        before = clock.time
        call = failing([ConnectionError()])
        retry.again(first(call), call)
        waits.add(round(clock.time - before, 9))
    assert len(waits) > 10
    assert max(waits) <= 0.5


def test_the_last_error_is_raised() -> None:
    """With the number of its attempts; an error that does not pass has one."""
    retry = Retry(RetryOptions(transient=2, timeout=2), clock=FakeClock())
    for causes, attempts in (
        ([ConnectionError()] * 9, 3),
        ([TimeoutError()] * 2 + [ConnectionError()] * 9, 5),
        ([ConnectionError(), ValueError()], 2),
        ([ValueError()], 1),
    ):
        call = failing(list(causes))
        with pytest.raises(DataError) as caught:
            retry.again(first(call), call)
        assert caught.value.attempts == attempts


def test_a_halt_ends_it() -> None:
    """Whoever stops the run gets no failed row."""
    halt = threading.Event()
    retry = Retry(RetryOptions(transient=50), halt=halt, on_retry=lambda _: halt.set(), clock=FakeClock())
    call = failing([ConnectionError()] * 99)
    with pytest.raises(Interrupted):
        retry.again(first(call), call)
