"""Files of lines cut into blocks: one fast pass at plan time, so that a unit can begin in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.data import Block, Unit
from batchinfer.errors import DataError
from batchinfer.storage import Store

BLOCK_BYTES = 8 * 1024 * 1024
_BLOCK_ROWS = 16_384
_MAX_RECORD_BYTES = 256 * 1024 * 1024
_NEWLINE = ord("\n")
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


class BadRecordError(Exception):
    """Bytes that do not parse. `line` counts from 0, in the bytes given to the parser."""

    def __init__(self, problem: str, *, line: int, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.line, self.hint = problem, line, hint


@dataclass(frozen=True, slots=True)
class Dialect:
    """What ends a record: a newline, or (with `quote`) one that an even number of quotes stands before,
    as RFC 4180 has it. A record of nothing but `blank` characters is none."""

    blank: bytes
    quote: str | None = None

    def edges(self, data: bytes, *, inside: bool = False) -> tuple[np.ndarray[Any, Any], bool]:
        """Return the offsets behind the newlines that end records, int64 of shape (records,), and
        whether the data ends inside quotes. `inside` says whether it began so."""
        values = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(values == _NEWLINE)
        if self.quote is not None:
            quotes = np.flatnonzero(values == ord(self.quote))
            newlines = newlines[(np.searchsorted(quotes, newlines) + inside) % 2 == 0]
            inside = bool((len(quotes) + inside) % 2)
        return newlines + 1, inside

    def written(self, data: bytes, starts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Tell for each stretch that begins at `starts` whether it is more than blank."""
        table = np.ones(256, np.bool_)
        table[list(self.blank)] = False
        found: np.ndarray[Any, Any] = np.logical_or.reduceat(table[np.frombuffer(data, np.uint8)], starts)
        return found


@contextlib.contextmanager
def open_text(store: Store, uri: str, *, version: str | None) -> Iterator[Any]:
    """Open a text file for reading in order, decompressed as its suffix says."""
    with contextlib.closing(store.open(uri, version=version)) as raw:
        codec = next((name for suffix, name in _CODECS.items() if uri.lower().endswith(suffix)), None)
        yield pa.CompressedInputStream(raw, codec) if codec else raw


@contextlib.contextmanager
def named(uri: str, kind: str) -> Iterator[None]:
    """Name the file in whatever is wrong with its bytes or its compression."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a readable {kind} file: {error}", where=uri) from error


@dataclass(slots=True)
class _Scan:
    """What is known of a file so far. Offsets are in the (decompressed) file."""

    offset: int
    block_start: int
    record_start: int
    rows: int = 0
    written: bool = False
    inside: bool = False
    blocks: list[Block] = field(default_factory=list)

    def add(self, data: bytes, dialect: Dialect) -> None:
        """Take the next piece of the file."""
        stops, self.inside = dialect.edges(data, inside=self.inside)
        starts = np.concatenate([[0], stops])
        written = dialect.written(data, starts[starts < len(data)])
        written[0] |= self.written
        self._cut(stops + self.offset, np.cumsum(written[: len(stops)]))
        rest = len(written) > len(stops)
        self.written = bool(written[-1]) if rest else False
        self.offset += len(data)

    def _cut(self, stops: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        """Close blocks behind records that end at `stops`; `rows` counts those that are not blank."""
        counted = 0
        while True:
            full = np.searchsorted(rows, counted + _BLOCK_ROWS - self.rows)
            large = np.searchsorted(stops, self.block_start + BLOCK_BYTES)
            at = int(min(full, large))
            if at >= len(stops):
                break
            self._close(int(stops[at]), self.rows + int(rows[at]) - counted)
            counted = int(rows[at])
        if len(stops):
            self.record_start = int(stops[-1])
            self.rows += int(rows[-1]) - counted

    def _close(self, stop: int, rows: int) -> None:
        if rows:
            size = stop - self.block_start
            self.blocks.append(Block(num_rows=rows, num_bytes=size, offset=self.block_start))
        self.block_start, self.rows = stop, 0

    def finish(self) -> tuple[Block, ...]:
        """Close the last block. The last record needs no newline."""
        self._close(self.offset, self.rows + self.written)
        return tuple(self.blocks)


def scan(store: Store, uri: str, *, version: str, start: int, dialect: Dialect) -> tuple[Block, ...]:
    """Find the blocks of a file from offset `start` on: about 16,384 records or 8 MiB each.

    Raises DataError for a quote that is never closed, and for a record above 256 MiB.
    """
    state = _Scan(offset=start, block_start=start, record_start=start)
    with open_text(store, uri, version=version) as stream:
        _skip(stream, start)
        while data := stream.read(BLOCK_BYTES):
            state.add(data, dialect)
            if state.offset - state.record_start > _MAX_RECORD_BYTES:
                break
        too_long = state.offset - state.record_start > _MAX_RECORD_BYTES
    if too_long or state.inside:
        line = _line_at(store, uri, version=version, offset=state.record_start)
        quoted = "a quote is never closed" if state.inside else ""
        raise DataError(
            quoted or f"a line is longer than {_MAX_RECORD_BYTES:,} bytes",
            where=f"{uri}:{line} and on",
            hint=f"mend the record, or set input.quote: null if {dialect.quote} quotes nothing"
            if quoted
            else "lines must end with a newline",
        )
    return state.finish()


def read_blocks(
    store: Store, unit: Unit, parse: Callable[[bytes], pa.RecordBatch], *, batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the parsed rows of a unit, with the number of the first, at most `batch_rows` at once.

    `parse` returns all rows of a block's bytes, or raises BadRecordError. Raises DataError with file
    and line.
    """
    shard = unit.shard
    seekable = not shard.uri.lower().endswith(tuple(_CODECS))
    with open_text(store, shard.uri, version=shard.version) as stream:
        at = position = 0
        for block in shard.blocks:
            if at >= unit.stop:
                return
            if at + block.num_rows > unit.start:
                if seekable:
                    stream.seek(block.offset)
                else:
                    _skip(stream, block.offset - position)
                position = block.offset + block.num_bytes
                rows = _parsed(store, unit, block, stream.read(block.num_bytes), parse)
                low, high = max(at, unit.start), min(at + block.num_rows, unit.stop)
                for row in range(low, high, batch_rows):
                    yield row, rows.slice(row - at, min(batch_rows, high - row))
            at += block.num_rows


def first_bad(data: bytes, dialect: Dialect, is_good: Callable[[bytes], bool]) -> int:
    """Return the line, from 0, of the first record with which the data stops being good."""
    edges, _ = dialect.edges(data)
    stops = [0, *edges.tolist()] + ([len(data)] if not data.endswith(b"\n") else [])
    low, high = 0, len(stops) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_good(data[: stops[middle]]) else (low, middle)
    return data.count(b"\n", 0, stops[low])


def _parsed(
    store: Store, unit: Unit, block: Block, data: bytes, parse: Callable[[bytes], pa.RecordBatch]
) -> pa.RecordBatch:
    uri, version = unit.shard.uri, unit.shard.version
    if len(data) < block.num_bytes:
        raise DataError("the file is shorter than it was planned", where=uri)
    try:
        rows = parse(data)
    except BadRecordError as bad:
        line = _line_at(store, uri, version=version, offset=block.offset) + bad.line
        raise DataError(bad.problem, where=f"{uri}:{line}", hint=bad.hint) from bad
    if rows.num_rows != block.num_rows:
        line = _line_at(store, uri, version=version, offset=block.offset)
        raise DataError(
            f"{block.num_rows} records were counted in a block, and {rows.num_rows} parsed",
            where=f"{uri}:{line} and on",
            hint="quotes or line ends are broken in this part of the file",
        )
    return rows


def _line_at(store: Store, uri: str, *, version: str, offset: int) -> int:
    """Return the number, from 1, of the line that begins at an offset. Reads the file up to there."""
    with open_text(store, uri, version=version) as stream:
        return 1 + sum(data.count(b"\n") for data in _pieces(stream, offset))


def _skip(stream: Any, size: int) -> None:
    for _ in _pieces(stream, size):
        pass


def _pieces(stream: Any, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes, fewer where the stream ends."""
    while data := stream.read(min(size, BLOCK_BYTES)):
        yield data
        size -= len(data)
