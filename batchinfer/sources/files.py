"""A folder of files as rows: `path`, `bytes` and `size` of each, in the order of their paths.

One shard is a group of neighbouring files, so that a hundred thousand images do not become a hundred
thousand units. A group is found again by listing: its version is the hash of the names, sizes and
versions of its files, and a listing that gives another one means that the input changed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Literal

import numpy as np
import pyarrow as pa

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError, NoInputError
from batchinfer.sources.listing import Inputs
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection
from batchinfer.storage.door import changed

_GROUP_FILES = 2_048
_GROUP_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024 * 1024
_MAX_FILE_BYTES = 512 * 1024 * 1024
_READS_AT_ONCE = 8
_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.binary()), ("size", pa.int64())])


class FilesOptions(SourceOptions):
    """Files of any kind."""

    format: Literal["files"] = "files"

    suffixes: tuple[str, ...] | None = None
    """Take only files with these endings, such as [.jpg, .png]."""


class FilesSource:
    """Reads whole files as rows. `path` is below the fixed part of `input.path`."""

    Options = FilesOptions

    def __init__(self, options: FilesOptions) -> None:
        self._options = options
        self._inputs = Inputs(options, options.suffixes)
        self._lock = threading.Lock()
        self._listed: dict[str, list[Entry]] | None = None
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List groups of files, one entry each."""
        return [_as_entry(group) for group in self._groups().values()]

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Describe a group: one block, one row per file."""
        group = self._group(entry.uri, entry.version)
        block = Block(num_rows=len(group), num_bytes=entry.size_bytes)
        return self._inputs.shard(entry, index=index, blocks=(block,), of_file=group[0].uri), _SCHEMA

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's files, several at once; `bytes` only where it is asked for, and only of the
        files that are selected."""
        if not self.selection.may_match(unit.shard, schema):
            return
        group = self._group(unit.shard.uri, unit.shard.version)
        where = self.selection.where
        needed = where is not None and "bytes" in where.columns
        lazy = "bytes" in columns and not needed
        first = [name for name in columns if not (lazy and name == "bytes")]
        pieces = (
            (at, self._rows(group[at:stop], with_bytes=needed))
            for at, stop in _cuts(group, unit.start, unit.stop, batch_rows, by_bytes=needed)
        )
        for chunk in self.selection.chunks(unit, pieces, schema=schema, columns=first):
            if not lazy:
                yield chunk
                continue
            files = [group[number] for number in chunk.numbers]
            for at, stop in _cuts(files, 0, len(files), batch_rows, by_bytes=True):
                yield self._with_bytes(chunk, files[at:stop], at, columns)

    def _with_bytes(self, chunk: Chunk, files: Sequence[Entry], at: int, columns: Sequence[str]) -> Chunk:
        """Return the rows of a chunk from `at` on, with the content of their files."""
        rows = chunk.rows.slice(at, len(files))
        known = {**dict(zip(rows.schema.names, rows.columns, strict=True)), "bytes": self._contents(files)}
        arrays = [known[name] for name in columns]
        numbers: np.ndarray[tuple[int], np.dtype[np.int64]] = chunk.numbers[at : at + len(files)]
        return Chunk(chunk.unit, pa.RecordBatch.from_arrays(arrays, names=list(columns)), numbers)

    def _groups(self) -> dict[str, list[Entry]]:
        """List once per process."""
        with self._lock:
            if self._listed is None:
                entries = self._inputs.entries()
                wanted = self._options.suffixes
                if wanted is not None:
                    entries = [entry for entry in entries if entry.uri.lower().endswith(wanted)]
                if not entries:
                    raise NoInputError(f"input.path matches no file that ends in {' or '.join(wanted or ())}")
                self._listed = _grouped(entries)
            return self._listed

    def _group(self, uri: str, version: str) -> list[Entry]:
        group = self._groups().get(uri)
        if group is None or _as_entry(group).version != version:
            raise changed(uri)
        return group

    def _rows(self, files: Sequence[Entry], *, with_bytes: bool) -> pa.RecordBatch:
        paths = pa.array([self._inputs.key(file.uri) for file in files], pa.string())
        sizes = pa.array([file.size_bytes for file in files], pa.int64())
        content = self._contents(files) if with_bytes else pa.nulls(len(files), pa.binary())
        return pa.RecordBatch.from_arrays([paths, content, sizes], schema=_SCHEMA)

    def _contents(self, files: Sequence[Entry]) -> pa.Array:
        with ThreadPoolExecutor(min(_READS_AT_ONCE, len(files) or 1)) as pool:
            return pa.array(list(pool.map(self._content, files)), pa.binary())

    def _content(self, file: Entry) -> bytes:
        if file.size_bytes > _MAX_FILE_BYTES:
            raise DataError(
                f"the file has {file.size_bytes:,} bytes, above the limit of {_MAX_FILE_BYTES:,} for one row",
                where=file.uri,
                hint="leave it out: input.where: size < 500000000",
            )
        store = self._inputs.store(file.uri)
        with (
            self._inputs.unchanged(file.uri, file.version),
            closing(store.open(file.uri, version=file.version)) as stream,
        ):
            data: bytes = stream.read()
        if len(data) != file.size_bytes:
            raise changed(file.uri)
        return data


def _cuts(
    files: Sequence[Entry], start: int, stop: int, rows: int, *, by_bytes: bool
) -> Iterator[tuple[int, int]]:
    """Cut files [start, stop) to runs of at most `rows`, and of 64 MiB where their bytes are read."""
    begin, size = start, 0
    for at in range(start, stop):
        full = by_bytes and size + files[at].size_bytes > _CHUNK_BYTES
        if at > begin and (at - begin >= rows or full):
            yield begin, at
            begin, size = at, 0
        size += files[at].size_bytes
    if begin < stop:
        yield begin, stop


def _grouped(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Put neighbours of one folder together."""
    groups: dict[str, list[Entry]] = {}
    group: list[Entry] = []
    size = 0
    for entry in entries:
        full = len(group) >= _GROUP_FILES or size + entry.size_bytes > _GROUP_BYTES
        if group and (full or entry.uri.rpartition("/")[0] != group[0].uri.rpartition("/")[0]):
            groups[_group_uri(group)] = group
            group, size = [], 0
        group.append(entry)
        size += entry.size_bytes
    groups[_group_uri(group)] = group
    return groups


def _group_uri(group: Sequence[Entry]) -> str:
    return group[0].uri if len(group) == 1 else f"{group[0].uri}..{group[-1].uri.rpartition('/')[2]}"


def _as_entry(group: Sequence[Entry]) -> Entry:
    digest = hashlib.sha256()
    for entry in group:
        digest.update(f"{entry.uri}\0{entry.size_bytes}\0{entry.version}\n".encode())
    size = sum(entry.size_bytes for entry in group)
    return Entry(uri=_group_uri(group), size_bytes=size, version=digest.hexdigest()[:32])
