"""What `input.path` stands for: one listing per pattern, no file opened."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchinfer.data import Block, Entry, Shard
from batchinfer.errors import NoInputError
from batchinfer.sources.hive import key_of, partition_values
from batchinfer.storage import Store, open_store, split_glob

if TYPE_CHECKING:
    from batchinfer.sources.options import SourceOptions

_SHOWN = 5


class Inputs:
    """The files of an input, and the stores that they are in. Safe to use from several threads."""

    def __init__(self, options: SourceOptions, suffixes: Sequence[str] | None) -> None:
        self._options = options
        self._suffixes = suffixes
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def store(self, uri: str) -> Store:
        """Return the store of a file: one client per bucket, made when it is first needed."""
        scheme, separator, rest = uri.partition("://")
        bucket = f"{scheme}://{rest.partition('/')[0]}" if separator else ""
        with self._lock:
            if bucket not in self._stores:
                self._stores[bucket] = open_store(uri, self._options.storage_options)
            return self._stores[bucket]

    @contextlib.contextmanager
    def unchanged(self, uri: str, version: str) -> Iterator[None]:
        """Make sure that a file is the planned one still when its reading ends, well or not.

        A bucket is asked for the planned version with every request. A local file can be written
        anew under an open handle, and what is read then is a mix of both. Raises DataError.
        """
        try:
            yield
        except Exception:
            # Nonsense out of a file that has changed is not worth telling.
            self._check(uri, version)
            raise
        self._check(uri, version)

    def _check(self, uri: str, version: str) -> None:
        if "://" not in uri:
            self.store(uri).open(uri, version=version).close()

    def entries(self) -> list[Entry]:
        """Return the input's files in order, each once. A folder gives only files of known suffixes.

        Raises NoInputError that says what was there instead.
        """
        found = {entry.uri: entry for pattern in self._options.patterns for entry in self._matching(pattern)}
        return sorted(found.values(), key=lambda entry: entry.uri)

    def key(self, uri: str) -> str:
        """Return a file's path below the fixed part of `input.path`."""
        return key_of(uri, self._options.patterns)

    def shard(
        self, entry: Entry, *, index: int, blocks: tuple[Block, ...], of_file: str | None = None
    ) -> Shard:
        """Describe a file; its key and partitions come from its path (or from `of_file`, for a group)."""
        key = self.key(of_file or entry.uri)
        return Shard(
            index=index,
            uri=entry.uri,
            key=key,
            size_bytes=entry.size_bytes,
            version=entry.version,
            blocks=blocks,
            partition=partition_values(key) if self._options.partitioning == "hive" else {},
        )

    def _matching(self, pattern: str) -> list[Entry]:
        fixed, rest = split_glob(pattern)
        store = self.store(pattern)
        entries = store.glob(pattern)
        if rest and not entries:
            # A glob may also name folders, as in `dt=2026-*/`: everything below them is meant.
            folders = store.glob(pattern.rstrip("/") + "/**")
            return self._known(folders) or self._nothing(pattern, folders)
        if rest or (len(entries) == 1 and entries[0].uri == fixed):
            return entries
        return self._known(entries) or self._nothing(pattern, entries)

    def _known(self, entries: Sequence[Entry]) -> list[Entry]:
        if self._suffixes is None:
            return list(entries)
        return [entry for entry in entries if entry.uri.lower().endswith(tuple(self._suffixes))]

    def _nothing(self, pattern: str, entries: Sequence[Entry]) -> list[Entry]:
        """Raise NoInputError that says what there is instead."""
        if entries:
            kinds = " or ".join(self._suffixes or ())
            there = (
                f"the folder holds {len(entries)} files, such as {entries[0].uri.rpartition('/')[2]!r}, none "
                f"of them {kinds}: set input.format, or name the files with a glob"
            )
        else:
            there = self._nearest(split_glob(pattern)[0])
        raise NoInputError(f"input.path matches no file: {pattern}", hint=there)

    def _nearest(self, fixed: str) -> str:
        """Say what is in a folder, or which folder above it there is."""
        near = self.store(fixed).entries(fixed)
        if near:
            more = ", …" if len(near) > _SHOWN else ""
            shown = ", ".join(entry.uri[len(fixed) :].lstrip("/") for entry in near[:_SHOWN])
            return f"below {fixed} there are {len(near)} files: {shown}{more}"
        if "://" in fixed or Path(fixed).exists():
            return f"nothing is below {fixed}"
        above = next(parent for parent in Path(fixed).parents if parent.exists())
        names = sorted(path.name for path in above.iterdir())
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        return f"{fixed} does not exist; {above} holds {shown or 'nothing'}"
