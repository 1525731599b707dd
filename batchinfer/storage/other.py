"""Any other fsspec file system (sftp, hdfs, http): reads, and writes without conditions, but for gcs://."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa

from batchinfer.clock import Clock, SystemClock
from batchinfer.data import Entry
from batchinfer.errors import JobFileError
from batchinfer.storage.door import AlreadyExists, ObjectMissing, changed, os_errors
from batchinfer.storage.globs import select, split_glob

_CONDITIONAL = {"gcs"}


class FsspecStore:
    """The `Store` for what obstore does not serve. fsspec's create is a look and a write: no commit.

    gcsfs alone creates by a conditional put (`ifGenerationMatch=0`), as long as the object is written in
    one piece by `pipe_file`: its `open("xb")` overwrites.
    """

    parallel = 8
    patience_s = 60.0
    clock: Clock = SystemClock()

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._scheme = url.split("://", 1)[0]
        self.conditional = self._scheme in _CONDITIONAL
        try:
            self._fs: Any = fsspec.filesystem(self._scheme, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise JobFileError(
                f"no client for {self._scheme}:// URLs: {error}",
                where=url,
                hint="known: local paths, s3://, gs://, az://, memory://, and what fsspec has installed",
            ) from error

    def entries(self, prefix: str) -> list[Entry]:
        """Return everything below a folder, sorted by URL."""
        with os_errors(prefix):
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return []
        return sorted((self._entry(info) for info in found.values()), key=lambda entry: entry.uri)

    def glob(self, pattern: str) -> list[Entry]:
        """Return the files that a name, a folder or a glob stands for."""
        return select(self.entries(split_glob(pattern)[0]), pattern)

    def open(self, uri: str, *, version: str | None = None) -> Any:
        """Open for random access."""
        with os_errors(uri):
            if version is not None and self._entry(self._fs.info(self._path(uri))).version != version:
                raise changed(uri)
            return pa.PythonFile(self._fs.open(self._path(uri), "rb"), mode="r")

    def read(self, uri: str) -> bytes:
        """Return a whole file."""
        with os_errors(uri):
            return bytes(self._fs.cat_file(self._path(uri)))

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:  # noqa: ARG002 - none is kept
        """Create, or where the client cannot, look and write: safe for one writer only, which
        `commit: single-writer` declares."""
        with os_errors(uri):
            if self.conditional:
                try:
                    self._fs.pipe_file(self._path(uri), bytes(data), mode="create")
                except FileExistsError:
                    raise AlreadyExists(uri) from None
                return
            if self._fs.exists(self._path(uri)):
                raise AlreadyExists(uri)
        self.put(uri, data)

    def stamp(self, uri: str) -> Mapping[str, str]:
        """Return nothing, if the file is there."""
        with os_errors(uri):
            self._fs.info(self._path(uri))
        return {}

    def put(self, uri: str, data: Any) -> None:
        """Write a whole file."""
        path = self._path(uri)
        with os_errors(uri):
            with contextlib.suppress(NotImplementedError):
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, bytes(data))

    def replace(self, uri: str, data: Any, *, version: str) -> None:
        """Look, then write, as `create` does."""
        with os_errors(uri):
            if self._entry(self._fs.info(self._path(uri))).version != version:
                raise AlreadyExists(uri)
        self.put(uri, data)

    def leftovers(self, prefix: str, *, now: float) -> list[Entry]:  # noqa: ARG002 - none that can be told
        """Return nothing: these stores have no names of unfinished writes."""
        return []

    def delete(self, uri: str) -> None:
        """Delete a file if it is there."""
        with contextlib.suppress(ObjectMissing), os_errors(uri):
            self._fs.rm_file(self._path(uri))

    def _path(self, uri: str) -> str:
        return str(self._fs._strip_protocol(uri))  # noqa: SLF001 - fsspec's own way to spell a path

    def _entry(self, info: Mapping[str, Any]) -> Entry:
        known = (info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "modified", "created"))
        token = next((str(value) for value in known if value), "")
        # Some clients have several names for their scheme: the one that the user wrote is ours.
        uri = f"{self._scheme}://{self._fs.unstrip_protocol(info['name']).partition('://')[2]}"
        return Entry(uri=uri, size_bytes=info["size"] or 0, version=f"{token}-{info['size']}")
