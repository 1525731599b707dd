"""S3, GCS, Azure and memory through obstore: conditional puts, uniform errors, one client per bucket."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from obstore import exceptions as refusals
from obstore.store import MemoryStore, from_url

from batchinfer.clock import Clock, SystemClock
from batchinfer.crash import crash_point
from batchinfer.data import Entry
from batchinfer.errors import AccessError, BatchinferError, JobFileError, UnavailableError
from batchinfer.storage.door import AlreadyExists, ObjectMissing, changed
from batchinfer.storage.globs import select, split_glob
from batchinfer.storage.ranges import Ranges

_PATIENCE_S = 300.0
_FETCHERS = 8
_TIMEOUTS: Any = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=120)}
_DENIED = (
    "<Code>ExpiredToken",  # what S3 says with status 400 where others say 401
    "<Code>TokenRefreshRequired",
    "<Code>InvalidToken",
    "status code: 403",  # the client knows it as a refusal of an object, and not of a listing
    "status code: 401",
)
_DURATIONS = ("connect_timeout", "timeout")

# The names that fsspec and the cloud tools use, for obstore's.
_SYNONYMS = {
    "endpoint_url": "endpoint",
    "key": "access_key_id",
    "secret": "secret_access_key",
    "anonymous": "skip_signature",
    "anon": "skip_signature",
}
_CLIENT = {"allow_http", "allow_invalid_certificates", "connect_timeout", "timeout", "proxy_url"}

_memory: dict[str, MemoryStore] = {}
"""memory:// lives as long as the process: one store per name, shared by input and output."""


class ObjectStore:
    """The `Store` for one bucket (or container, or memory space)."""

    conditional = True  # If-None-Match or ifGenerationMatch; the probe checks that the server obeys
    parallel = 32
    patience_s = _PATIENCE_S
    clock: Clock = SystemClock()

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._lock = threading.Lock()
        self._fetchers: ThreadPoolExecutor | None = None
        parts = urlsplit(url)
        self._base = f"{parts.scheme}://{parts.netloc}/"
        if parts.scheme == "memory":
            self._store: Any = _memory.setdefault(parts.netloc, MemoryStore())
            return
        config, client = _configure(parts.scheme, options)
        self.patience_s = _seconds(config.pop("retry_timeout", _PATIENCE_S), "retry_timeout", self._base)
        # The client waits with full jitter between its tries; beyond that, `publish` tries again.
        retries: Any = {"max_retries": 10, "retry_timeout": timedelta(seconds=self.patience_s)}
        try:
            self._store = from_url(self._base, config=config, client_options=client, retry_config=retries)
        except (refusals.BaseError, ValueError, TypeError) as error:
            raise JobFileError(
                f"cannot make a client: {_first_line(error)}",
                where=f"storage_options for {self._base}",
                hint=f"known options include {', '.join(sorted(_SYNONYMS))}, region, allow_http, timeout, "
                "retry_timeout",
            ) from error

    def entries(self, prefix: str) -> list[Entry]:
        """Return everything below a folder, sorted by URL; one request per 1,000 objects."""
        with self._answers(prefix):
            pages = obstore.list(self._store, self._key(prefix) or None, chunk_size=10_000)
            found = [self._entry(meta) for page in pages for meta in page]
        return sorted(found, key=lambda entry: entry.uri)

    def glob(self, pattern: str) -> list[Entry]:
        """Return the objects that a name, a folder or a glob stands for."""
        fixed, rest = split_glob(pattern)
        entries = self.entries(fixed)
        if not entries and not rest:
            # A prefix listing goes by folders: a single object is asked for by its name.
            with contextlib.suppress(ObjectMissing), self._answers(pattern):
                entries = [self._entry(obstore.head(self._store, self._key(pattern)))]
        return select(entries, pattern)

    def open(self, uri: str, *, version: str | None = None) -> Any:
        """Open for ranged reads, each of which insists on the planned version."""
        with self._answers(uri):
            meta = obstore.head(self._store, self._key(uri))
        if version is not None and _version(meta) != version:
            raise changed(uri)
        return FarFile(_RangeFile(self, uri, meta, self._pool()), mode="r")

    def read(self, uri: str) -> bytes:
        """Return a whole object."""
        with self._answers(uri):
            return bytes(obstore.get(self._store, self._key(uri)).bytes())

    def read_range(self, uri: str, *, start: int, stop: int, tag: str | None) -> Any:
        """Return bytes [start, stop) of the object with this ETag. Raises DataError for another."""
        options: Any = {"range": (start, stop)}
        if tag is not None:
            options["if_match"] = tag
        with self._answers(uri):
            try:
                return obstore.get(self._store, self._key(uri), options=options).bytes()
            except refusals.PreconditionError:
                raise changed(uri) from None

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        """Put unless the name is taken. The client retries by itself, so that "exists" may be our own
        write whose answer was lost; and 409, which it calls "exists" too, may mean that nothing is there.
        """
        marks: Any = dict(stamp or {})
        with self._answers(uri):
            try:
                obstore.put(
                    self._store,
                    self._key(uri),
                    bytes(data),
                    mode="create",
                    attributes=marks,
                    use_multipart=False,
                )
            except (refusals.AlreadyExistsError, refusals.PreconditionError):
                raise AlreadyExists(uri) from None
            crash_point("commit.sent")

    def stamp(self, uri: str) -> Mapping[str, str]:
        """Ask for an object's metadata alone."""
        options: Any = {"head": True}
        with self._answers(uri):
            found = obstore.get(self._store, self._key(uri), options=options).attributes
        return {str(name).lower(): str(value) for name, value in found.items()}

    def put(self, uri: str, data: Any) -> None:
        """Put, replacing what is there."""
        with self._answers(uri):
            obstore.put(self._store, self._key(uri), bytes(data), use_multipart=False)

    def replace(self, uri: str, data: Any, *, version: str) -> None:
        """Put if the object's ETag is still that of the version."""
        with self._answers(uri):
            meta = obstore.head(self._store, self._key(uri))
            if _version(meta) != version or not meta.get("e_tag"):
                raise AlreadyExists(uri)
            mode: Any = {"e_tag": meta["e_tag"]}
            try:
                obstore.put(self._store, self._key(uri), bytes(data), mode=mode, use_multipart=False)
            except (refusals.AlreadyExistsError, refusals.PreconditionError):
                raise AlreadyExists(uri) from None

    def delete(self, uri: str) -> None:
        """Delete an object if it is there."""
        with contextlib.suppress(ObjectMissing), self._answers(uri):
            obstore.delete(self._store, self._key(uri))

    def leftovers(self, prefix: str, *, now: float) -> list[Entry]:  # noqa: ARG002 - see below
        """Return nothing: a put is whole or not there, and no upload in several parts is ever begun."""
        return []

    def _pool(self) -> ThreadPoolExecutor:
        """Return the threads that fetch ahead, for all files of the store."""
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(_FETCHERS, "fetch")
            return self._fetchers

    def _key(self, uri: str) -> str:
        return uri.removeprefix(self._base).removesuffix("/") if uri + "/" != self._base else ""

    def _entry(self, meta: Any) -> Entry:
        return Entry(
            uri=self._base + meta["path"],
            size_bytes=meta["size"],
            version=_version(meta),
            modified=meta["last_modified"].timestamp(),
        )

    @contextlib.contextmanager
    def _answers(self, uri: str) -> Iterator[None]:
        """Turn what the store says into our words. Requests were retried with backoff by then."""
        try:
            yield
        except (BatchinferError, AlreadyExists):
            raise
        except FileNotFoundError as error:
            raise ObjectMissing("there is no such object", where=uri) from error
        except (refusals.PermissionDeniedError, refusals.UnauthenticatedError) as error:
            raise _denied(uri) from error
        except (refusals.BaseError, OSError, ValueError) as error:
            if any(code in str(error) for code in _DENIED):
                raise _denied(uri) from error
            raise UnavailableError(
                f"the store could not be reached: {_first_line(error)}",
                where=uri,
                hint="run the same command again; it resumes",
            ) from error


class FarFile(pa.PythonFile):  # type: ignore[misc]
    """An object, open for random access. Where it is told what will be read, that is fetched ahead."""

    def __init__(self, handle: _RangeFile, mode: str) -> None:  # noqa: ARG002 - pyarrow's own sees it as well
        self._handle = handle

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch byte ranges [start, stop) that will be read."""
        self._handle.expect(ranges)


class _RangeFile(io.RawIOBase):
    """An object as a seekable file: every read is one ranged request for exactly those bytes, but for those
    that were expected."""

    def __init__(self, store: ObjectStore, uri: str, meta: Any, pool: Executor) -> None:
        self._store, self._uri = store, uri
        self._tag, self._size = meta.get("e_tag"), meta["size"]
        self._at = 0
        self._ranges = Ranges(self._fetch, pool)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch byte ranges that will be read."""
        self._ranges.expect(
            (start, min(stop, self._size)) for start, stop in ranges if 0 <= start < self._size
        )

    def close(self) -> None:
        """Fetch nothing more."""
        if not self.closed:
            self._ranges.close()
        super().close()

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the offset of the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def size(self) -> int:
        """Return the size in bytes."""
        return int(self._size)

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes, or all that are left."""
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        data = self._ranges.read(self._at, stop)
        if data is None:
            data = bytes(self._fetch(self._at, stop))
        self._at += len(data)
        return data

    def _fetch(self, start: int, stop: int) -> Any:
        return self._store.read_range(self._uri, start=start, stop=stop, tag=self._tag)


def _version(meta: Mapping[str, Any]) -> str:
    token = meta.get("e_tag") or meta["last_modified"].isoformat()
    return f"{token.strip(chr(34))}-{meta['size']:x}"


def _denied(uri: str) -> AccessError:
    return AccessError(
        "the store refused: permission denied, or the credentials have expired",
        where=uri,
        hint="check the credentials in storage_options or the environment, and run the same command again",
    )


def _first_line(error: BaseException) -> str:
    """Return what a client says before it goes on for a page."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _seconds(value: object, name: str, where: str) -> float:
    """Read a duration. Raises JobFileError for what is none."""
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise JobFileError(
            f"{name} must be a number of seconds, got {value!r}", where=f"storage_options for {where}"
        )
    return seconds


def _configure(scheme: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Split storage options into the store's own and the HTTP client's."""
    config: dict[str, Any] = {}
    client: dict[str, Any] = dict(_TIMEOUTS)
    for name, value in options.items():
        if name in _DURATIONS:
            client[name] = timedelta(seconds=_seconds(value, name, f"{scheme}://"))
        elif name in _CLIENT:
            client[name] = value
        else:
            synonym = _SYNONYMS.get(name, name)
            if scheme == "gs" and synonym == "endpoint":
                synonym = "base_url"
            config[synonym] = value
    endpoint = str(config.get("endpoint", ""))
    if endpoint.startswith("http://"):
        client.setdefault("allow_http", True)
    if scheme == "s3":
        # Stores other than AWS take any region, and a path-style URL.
        config.setdefault("region", "us-east-1")
    return config, client
