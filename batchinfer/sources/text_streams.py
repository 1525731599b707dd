"""Text files as they are read: decompressed, block by block, and named by line where they are wrong."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchinfer.data import Block, Unit
from batchinfer.errors import DataError
from batchinfer.storage import Store

READ_BYTES = 2 * 1024 * 1024
_KEPT_STREAMS = 2
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


class BadRecordError(Exception):
    """Bytes that do not parse. `line` counts from 0, in the bytes given to the parser."""

    def __init__(self, problem: str, *, line: int, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line, self.hint = problem, line, hint


def open_text(store: Store, uri: str, *, version: str | None) -> Any:
    """Open a text file for reading in order, decompressed as its suffix says."""
    raw = store.open(uri, version=version)
    codec = next((name for suffix, name in _CODECS.items() if uri.lower().endswith(suffix)), None)
    return pa.CompressedInputStream(raw, codec) if codec else raw


@contextlib.contextmanager
def named(uri: str, kind: str) -> Iterator[None]:
    """Name the file in whatever is wrong with its bytes or its compression."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable {kind} file: {error}", where=uri) from error


def line_at(store: Store, uri: str, *, version: str, offset: int) -> int:
    """Return the number, from 1, of the line that begins at an offset. Reads the file up to there."""
    with contextlib.closing(open_text(store, uri, version=version)) as stream:
        return 1 + sum(data.count(b"\n") for data in _pieces(stream, offset))


def skip(stream: Any, size: int) -> None:
    """Read over the next bytes."""
    for _ in _pieces(stream, size):
        pass


def _pieces(stream: Any, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes, fewer where the stream ends."""
    while data := stream.read(min(size, READ_BYTES)):
        yield data
        size -= len(data)


@dataclass(slots=True)
class _Reader:
    """A file at a position, and the block before it, in which the next unit may begin."""

    stream: Any
    in_order: bool
    position: int = 0
    data: bytes = b""

    def reaches(self, block: Block) -> bool:
        """Tell whether a block can be read without beginning again."""
        return self.position <= block.offset or self._holds(block)

    def read(self, block: Block) -> bytes:
        """Return the bytes of a block, fewer where the file ends."""
        if not self._holds(block):
            if self.in_order:
                skip(self.stream, block.offset - self.position)
            else:
                self.stream.seek(block.offset)
            self.data = self.stream.read(block.num_bytes)
            self.position = block.offset + block.num_bytes
        return self.data

    def _holds(self, block: Block) -> bool:
        return bool(self.data) and self.position == block.offset + block.num_bytes


class Streams:
    """Files that are being read. One that can only be read in order is kept open where a unit ended:
    the next unit goes on from there, and need not begin at the beginning. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], _Reader] = OrderedDict()

    def read_blocks(
        self, store: Store, unit: Unit, parse: Callable[[bytes], pa.RecordBatch], *, batch_rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the parsed rows of a unit, with the number of the first, at most `batch_rows` at once.

        `parse` returns all rows of a block's bytes, or raises BadRecordError. Raises DataError with
        file and line.
        """
        blocks = list(_within(unit))
        if not blocks:
            return
        reader = self._take(store, unit, blocks[0][1])
        for first, block in blocks:
            rows = _parsed(store, unit, block, reader.read(block), parse)
            low, high = max(first, unit.start), min(first + block.num_rows, unit.stop)
            for row in range(low, high, batch_rows):
                yield row, rows.slice(row - first, min(batch_rows, high - row))
        self._keep(unit, reader)

    def _take(self, store: Store, unit: Unit, block: Block) -> _Reader:
        uri, version = key = (unit.shard.uri, unit.shard.version)
        with self._lock:
            if key in self._kept and self._kept[key].reaches(block):
                return self._kept.pop(key)
        return _Reader(open_text(store, uri, version=version), in_order=is_compressed(uri))

    def _keep(self, unit: Unit, reader: _Reader) -> None:
        if not reader.in_order or unit.stop == unit.shard.num_rows:
            reader.stream.close()
            return
        key = (unit.shard.uri, unit.shard.version)
        with self._lock:
            dropped = [self._kept.pop(key)] if key in self._kept else []
            self._kept[key] = reader
            while len(self._kept) > _KEPT_STREAMS:
                dropped.append(self._kept.popitem(last=False)[1])
        for other in dropped:
            other.stream.close()


def is_compressed(uri: str) -> bool:
    """Tell whether a file can only be read in order."""
    return uri.lower().endswith(tuple(_CODECS))


def _within(unit: Unit) -> Iterator[tuple[int, Block]]:
    """Yield the blocks that a unit has rows in, with the number of the first row of each."""
    first = 0
    for block in unit.shard.blocks:
        if max(first, unit.start) < min(first + block.num_rows, unit.stop):
            yield first, block
        first += block.num_rows


def _parsed(
    store: Store, unit: Unit, block: Block, data: bytes, parse: Callable[[bytes], pa.RecordBatch]
) -> pa.RecordBatch:
    uri, version = unit.shard.uri, unit.shard.version
    try:
        rows = parse(data)
    except BadRecordError as bad:
        line = line_at(store, uri, version=version, offset=block.offset) + bad.line
        raise DataError(bad.problem, where=f"{uri}:{line}", hint=bad.hint) from bad
    if rows.num_rows != block.num_rows:
        line = line_at(store, uri, version=version, offset=block.offset)
        raise DataError(
            f"{block.num_rows} records were counted in a block, and {rows.num_rows} parsed",
            where=f"{uri}:{line} and on",
            hint="a record must stand on a line of its own, and quotes and line ends must be whole",
        )
    return rows
