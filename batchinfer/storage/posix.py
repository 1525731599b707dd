"""Local and mounted file systems. A new file appears whole, under its final name, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchinfer.clock import Clock, SystemClock
from batchinfer.crash import crash_point
from batchinfer.data import Entry
from batchinfer.storage.door import AlreadyExists, changed, os_errors
from batchinfer.storage.globs import select, split_glob

_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_DAY_S = 24 * 3600.0


class PosixStore:
    """The `Store` for plain paths and file:// URLs."""

    conditional = True  # link() fails if the name exists, also on NFS
    parallel = 8
    patience_s = 60.0
    clock: Clock = SystemClock()

    def entries(self, prefix: str) -> list[Entry]:
        """Return everything below a folder, sorted by path."""
        with os_errors(prefix):
            return sorted(_walk(_local(prefix)), key=lambda entry: entry.uri)

    def glob(self, pattern: str) -> list[Entry]:
        """Return the files that a file name, a folder or a glob stands for."""
        pattern = _local(pattern)
        fixed, rest = split_glob(pattern)
        if not rest and Path(fixed).is_file():
            return [_entry(Path(fixed))]
        return select(self.entries(fixed), pattern)

    def open(self, uri: str, *, version: str | None = None) -> Any:
        """Open a file. It is not memory-mapped: a file cut short while mapped kills its reader."""
        path = _local(uri)
        with os_errors(uri):
            if version is not None and _version(os.stat(path)) != version:
                raise changed(uri)
            return pa.OSFile(path)

    def read(self, uri: str) -> bytes:
        """Return a whole file."""
        with os_errors(uri):
            return Path(_local(uri)).read_bytes()

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:  # noqa: ARG002 - none is kept
        """Write beside the final name, make it durable, then link: the link is the commit."""
        final = Path(_local(uri))
        with os_errors(uri), _temporary(final, data) as temporary:
            crash_point("commit.before_link")
            try:
                os.link(temporary, final)
            except FileExistsError:
                # On NFS the link may have been made and its answer lost: then two names lead here.
                if os.stat(temporary).st_nlink != 2:  # noqa: PLR2004
                    raise AlreadyExists(uri) from None
            crash_point("commit.sent")
            _sync_folder(final.parent)

    def stamp(self, uri: str) -> Mapping[str, str]:
        """Return nothing, if the file is there: whether a link was ours is told by the link itself."""
        with os_errors(uri):
            os.stat(_local(uri))
        return {}

    def put(self, uri: str, data: Any) -> None:
        """Replace a file by renaming a complete new one over it."""
        final = Path(_local(uri))
        with os_errors(uri), _temporary(final, data) as temporary:
            os.replace(temporary, final)
            _sync_folder(final.parent)

    def replace(self, uri: str, data: Any, *, version: str) -> None:
        """Look and rename under a lock that every writer of this folder takes."""
        final = Path(_local(uri))
        with os_errors(uri), (final.parent / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _version(os.stat(final)) != version:
                raise AlreadyExists(uri)
            self.put(uri, data)

    def delete(self, uri: str) -> None:
        """Remove a file if it is there."""
        with os_errors(uri):
            Path(_local(uri)).unlink(missing_ok=True)

    def leftovers(self, prefix: str, *, now: float) -> list[Entry]:
        """Return temporary files whose process is gone, and those of other machines after a day."""
        with os_errors(prefix):
            found = [_entry(Path(path)) for path in _temporaries(_local(prefix))]
        return [entry for entry in found if _is_dead(entry, now)]


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"


def _entry(path: Path) -> Entry:
    stat = path.stat()
    return Entry(uri=str(path), size_bytes=stat.st_size, version=_version(stat), modified=stat.st_mtime)


def _temporaries(folder: str) -> Iterator[str]:
    """Yield the temporary files below a folder."""
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in sorted(names) if name.startswith(_TEMPORARY))


def _is_dead(entry: Entry, now: float) -> bool:
    """Tell whether nobody can be writing this temporary file any more."""
    pid, _, rest = Path(entry.uri).name.removeprefix(_TEMPORARY).partition("-")
    if rest.partition("@")[2] == _host() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
        return True
    return now - entry.modified > _DAY_S


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "", platform.node())


def _walk(folder: str) -> Iterator[Entry]:
    """Yield every file below, in no order. Names like `.tmp-…` are writes that were never finished."""
    if not os.path.isdir(folder):
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _walk(entry.path)
        elif not entry.name.startswith(_TEMPORARY) and entry.name != _LOCK:
            # A file may vanish between the scan and the look at it.
            with contextlib.suppress(FileNotFoundError):
                yield _entry(Path(entry.path))


@contextlib.contextmanager
def _temporary(final: Path, data: Any) -> Iterator[Path]:
    """Write `data` to a new file in the folder of `final`, durably; it is gone afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    path = final.parent / f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}@{_host()}"
    half = len(data) // 2
    try:
        with path.open("xb") as file:
            file.write(memoryview(data)[:half])
            crash_point("commit.tmp_half")
            file.write(memoryview(data)[half:])
            file.flush()
            crash_point("commit.before_fsync")
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name durable: without it, a power loss may forget the name of a synced file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
