"""Is an error worth another attempt? Told by its type and by the numbers that it carries, never by its words.

An error of ours is what its cause is: what the user's code, a model or a client library raised.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

Reason: TypeAlias = Literal["timeout", "connection", "throttled", "server", "busy"]

REASONS: tuple[Reason, ...] = get_args(Reason)

_STATUS: dict[int, Reason] = {
    408: "timeout",
    425: "busy",
    429: "throttled",
    500: "server",
    502: "server",
    503: "server",
    504: "timeout",
}
"""HTTP statuses that may be another one next time (RFC 9110, RFC 6585)."""

_ERRNO: dict[int, Reason] = {
    errno.ETIMEDOUT: "timeout",
    errno.ECONNRESET: "connection",
    errno.ECONNREFUSED: "connection",
    errno.ECONNABORTED: "connection",
    errno.ENETDOWN: "connection",
    errno.ENETUNREACH: "connection",
    errno.ENETRESET: "connection",
    errno.EHOSTDOWN: "connection",
    errno.EHOSTUNREACH: "connection",
    errno.EPIPE: "connection",
    errno.EAGAIN: "busy",
    errno.EBUSY: "busy",
    errno.EINTR: "busy",
    errno.ESTALE: "busy",
}

_GRPC: dict[str, Reason] = {
    "UNAVAILABLE": "connection",
    "DEADLINE_EXCEEDED": "timeout",
    "RESOURCE_EXHAUSTED": "throttled",
    "ABORTED": "busy",
}

_CLASSES: dict[str, dict[str, Reason]] = {
    "requests": {"Timeout": "timeout", "ConnectionError": "connection", "ChunkedEncodingError": "connection"},
    "urllib3": {"TimeoutError": "timeout", "ProtocolError": "connection", "NewConnectionError": "connection"},
    "httpx": {
        "TimeoutException": "timeout",
        "NetworkError": "connection",
        "RemoteProtocolError": "connection",
    },
    "aiohttp": {"ServerTimeoutError": "timeout", "ClientConnectionError": "connection"},
    "openai": {"APITimeoutError": "timeout", "APIConnectionError": "connection"},
    "anthropic": {"APITimeoutError": "timeout", "APIConnectionError": "connection"},
    "botocore": {
        "ConnectTimeoutError": "timeout",
        "ReadTimeoutError": "timeout",
        "HTTPClientError": "connection",
    },
    "redis": {"TimeoutError": "timeout", "ConnectionError": "connection", "BusyLoadingError": "busy"},
    "http": {"IncompleteRead": "connection"},
}
"""Errors of optional libraries: the first part of the module's name, the class, also as a base class."""

_SQLITE_BUSY = {5, 6}
_DEEPEST = 8


def reason_of(error: BaseException) -> Reason | None:
    """Say why an error may be gone at another attempt; None where nothing speaks for it."""
    for cause in _causes(error):
        found = _by_number(cause) or _by_class(cause)
        if found is not None:
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from."""
    cause: Any = error
    for _ in range(_DEEPEST):
        if not isinstance(cause, BaseException):
            return
        yield cause
        # urllib's URLError keeps what happened as its reason.
        cause = cause.__cause__ or getattr(cause, "reason", None)


def _by_number(error: BaseException) -> Reason | None:
    status = _status_of(error)
    if status is not None:
        return _STATUS.get(status)
    if isinstance(error, socket.gaierror):
        return "connection" if error.errno == socket.EAI_AGAIN else None
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return _ERRNO[error.errno]
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_BUSY:
        return "busy"
    code = getattr(error, "code", None)
    if callable(code) and _is_of(error, "grpc"):
        return _GRPC.get(getattr(code(), "name", ""))
    return None


def _by_class(error: BaseException) -> Reason | None:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "connection"
    for cls in type(error).__mro__:
        found = _CLASSES.get(cls.__module__.partition(".")[0], {}).get(cls.__name__)
        if found is not None:
            return found
    return None


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, under any of the usual names."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)
    for name in ("status_code", "status", "code"):
        found = found if found is not None else getattr(error, name, None)
        found = found if isinstance(found, int) and not isinstance(found, bool) else None
        if found is not None:
            return int(found)
    return None


def _is_of(error: BaseException, library: str) -> bool:
    return any(cls.__module__.partition(".")[0] == library for cls in type(error).__mro__)
