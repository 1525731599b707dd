"""Files of lines cut into blocks: one fast pass at plan time, so that a unit can begin in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.data import Block, Unit
from batchinfer.errors import DataError
from batchinfer.storage import Store

_READ_BYTES = 8 * 1024 * 1024
_BLOCK_ROWS = 16_384
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}


@dataclass(frozen=True, slots=True)
class _Edges:
    """Ends of the records in one piece of a file: offsets behind each, and whether it is blank."""

    stops: np.ndarray[Any, Any]
    blank: np.ndarray[Any, Any]


def open_text(store: Store, uri: str, *, version: str | None) -> Any:
    """Open a text file for reading in order, decompressed as its suffix says."""
    raw = store.open(uri, version=version)
    codec = next((name for suffix, name in _CODECS.items() if uri.lower().endswith(suffix)), None)
    return pa.CompressedInputStream(raw, codec) if codec else raw


def is_compressed(uri: str) -> bool:
    """Tell whether a file can only be read from its beginning."""
    return uri.lower().endswith(tuple(_CODECS))


def scan(stream: Any, *, start: int, quoted: bool) -> tuple[Block, ...]:
    """Find the blocks of a file from offset `start` on: about 16,384 records or 8 MiB each.

    A record ends at a newline; with `quoted`, at one with an even number of quotes before it
    (RFC 4180). Blank lines are no records.
    """
    blocks: list[Block] = []
    block_start = line_start = offset = start
    num_rows, inside = 0, False
    while data := stream.read(_READ_BYTES):
        edges, inside = _edges(data, line_start - offset, quoted=quoted, inside=inside)
        for stop, blank in zip((edges.stops + offset).tolist(), edges.blank.tolist(), strict=True):
            num_rows += not blank
            line_start = stop
            if num_rows >= _BLOCK_ROWS or stop - block_start >= _READ_BYTES:
                blocks.append(Block(num_rows=num_rows, num_bytes=stop - block_start, offset=block_start))
                block_start, num_rows = stop, 0
        offset += len(data)
    if line_start < offset:
        num_rows += 1  # the last line has no newline
    if num_rows:
        blocks.append(Block(num_rows=num_rows, num_bytes=offset - block_start, offset=block_start))
    return tuple(blocks)


def _edges(data: bytes, line_start: int, *, quoted: bool, inside: bool) -> tuple[_Edges, bool]:
    """Find record ends in a piece of a file. `line_start` is where its first record began."""
    values = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(values == _NEWLINE)
    if quoted:
        quotes = np.flatnonzero(values == _QUOTE)
        odd = (np.searchsorted(quotes, newlines) + inside) % 2 == 1
        newlines = newlines[~odd]
        inside = bool((len(quotes) + inside) % 2)
    starts = np.concatenate([[line_start], newlines[:-1] + 1]) if len(newlines) else newlines
    length = newlines - starts
    one_return = (length == 1) & (values[np.maximum(newlines - 1, 0)] == _RETURN)
    return _Edges(newlines + 1, (length == 0) | one_return), inside


def read_blocks(
    store: Store, unit: Unit, parse: Callable[[bytes, int], pa.RecordBatch]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the parsed rows of a unit's blocks, with the number of the first; `parse` gets a block's
    bytes and its first row's number, and returns all its rows."""
    shard = unit.shard
    with contextlib.closing(open_text(store, shard.uri, version=shard.version)) as stream:
        at = position = 0
        for block in shard.blocks:
            if at >= unit.stop:
                return
            if at + block.num_rows > unit.start:
                data = _bytes_at(stream, block, position, seekable=not is_compressed(shard.uri))
                position = block.offset + block.num_bytes
                rows = parse(data, at)
                if rows.num_rows != block.num_rows:
                    raise DataError(
                        f"from row {at} on, {block.num_rows} records were counted and {rows.num_rows} parsed",
                        where=shard.uri,
                        hint="quotes or line ends are broken in this part of the file",
                    )
                low, high = max(at, unit.start), min(at + block.num_rows, unit.stop)
                yield low, rows.slice(low - at, high - low)
            at += block.num_rows


def _bytes_at(stream: Any, block: Block, position: int, *, seekable: bool) -> bytes:
    if seekable:
        stream.seek(block.offset)
    else:
        left = block.offset - position
        while left:
            left -= len(stream.read(min(left, _READ_BYTES)))
    data: bytes = stream.read(block.num_bytes)
    return data


def sliced(
    pieces: Iterator[tuple[int, pa.RecordBatch]], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut pieces to at most `batch_rows` rows."""
    for first, rows in pieces:
        for at in range(0, rows.num_rows, batch_rows):
            yield first + at, rows.slice(at, batch_rows)
