"""A folder of files as rows: `path`, `bytes` and `size` of each, in the order of their paths.

One shard is a group of neighbouring files, so that a hundred thousand images do not become a hundred
thousand units. A group is found again by listing: its version is the hash of the names, sizes and
versions of its files, and a listing that gives another one means that the input changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Literal

import pyarrow as pa

from batchinfer.data import Block, Chunk, Entry, Shard, Unit
from batchinfer.errors import DataError
from batchinfer.sources.hive import key_of
from batchinfer.sources.listing import list_inputs, shard_of, store_of
from batchinfer.sources.options import SourceOptions
from batchinfer.sources.select import Selection
from batchinfer.storage.door import changed

_GROUP_FILES = 2_048
_GROUP_BYTES = 256 * 1024 * 1024
_READS_AT_ONCE = 8
_SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.binary()), ("size", pa.int64())])


class FilesOptions(SourceOptions):
    """Files of any kind."""

    format: Literal["files"] = "files"

    suffixes: tuple[str, ...] | None = None
    """Take only files with these endings, such as [.jpg, .png]."""


class FilesSource:
    """Reads whole files as rows."""

    Options = FilesOptions

    def __init__(self, options: FilesOptions) -> None:
        self._options = options
        self.selection = Selection(options)

    def list_entries(self) -> Sequence[Entry]:
        """List groups of files, one entry each."""
        return [_as_entry(group) for group in self._groups.values()]

    def inspect(self, entry: Entry, *, index: int) -> tuple[Shard, pa.Schema]:
        """Describe a group: one block, one row per file."""
        group = self._group(entry.uri, entry.version)
        block = Block(num_rows=len(group), num_bytes=entry.size_bytes)
        shard = shard_of(self._options, entry, index=index, blocks=(block,), named=group[0].uri)
        return shard, _SCHEMA

    def read(
        self, unit: Unit, *, schema: pa.Schema, columns: Sequence[str], batch_rows: int
    ) -> Iterator[Chunk]:
        """Read a unit's files, several at once; `bytes` only where it is asked for."""
        group = self._group(unit.shard.uri, unit.shard.version)[unit.start : unit.stop]
        names = self.selection.file_columns(columns, unit)
        pieces = (
            (unit.start + at, self._rows(group[at : at + batch_rows], with_bytes="bytes" in names))
            for at in range(0, len(group), batch_rows)
        )
        yield from self.selection.chunks(unit, pieces, schema=schema, columns=columns)

    @cached_property
    def _groups(self) -> dict[str, list[Entry]]:
        """List once per process, and put neighbours of one folder together."""
        groups: dict[str, list[Entry]] = {}
        group: list[Entry] = []
        size = 0
        for entry in list_inputs(self._options, self._options.suffixes):
            folder = entry.uri.rpartition("/")[0]
            full = len(group) >= _GROUP_FILES or size + entry.size_bytes > _GROUP_BYTES
            if group and (full or folder != group[0].uri.rpartition("/")[0]):
                groups[_group_uri(group)] = group
                group, size = [], 0
            group.append(entry)
            size += entry.size_bytes
        groups[_group_uri(group)] = group
        return groups

    def _group(self, uri: str, version: str) -> list[Entry]:
        group = self._groups.get(uri)
        if group is None or _as_entry(group).version != version:
            raise changed(uri)
        return group

    def _rows(self, files: Sequence[Entry], *, with_bytes: bool) -> pa.RecordBatch:
        contents: list[bytes | None] = [None] * len(files)
        if with_bytes:
            with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
                contents = list(pool.map(self._content, files))
        return pa.RecordBatch.from_arrays(
            [
                pa.array([key_of(file.uri, self._options.patterns) for file in files], pa.string()),
                pa.array(contents, pa.binary()),
                pa.array([file.size_bytes for file in files], pa.int64()),
            ],
            schema=_SCHEMA,
        )

    def _content(self, file: Entry) -> bytes:
        data = store_of(self._options, file.uri).read(file.uri)
        if len(data) != file.size_bytes:
            raise DataError("the file changed while it was read", where=file.uri)
        return data


def _group_uri(group: Sequence[Entry]) -> str:
    return group[0].uri if len(group) == 1 else f"{group[0].uri}..{group[-1].uri.rpartition('/')[2]}"


def _as_entry(group: Sequence[Entry]) -> Entry:
    digest = hashlib.sha256()
    for entry in group:
        digest.update(f"{entry.uri}\0{entry.size_bytes}\0{entry.version}\n".encode())
    size = sum(entry.size_bytes for entry in group)
    return Entry(uri=_group_uri(group), size_bytes=size, version=digest.hexdigest()[:32])
