"""Files of lines cut into blocks: one fast pass at plan time, so that a unit can begin in the middle."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchinfer.data import Block
from batchinfer.errors import DataError
from batchinfer.sources.text_streams import READ_BYTES, line_at, open_text, skip
from batchinfer.storage import Store

_BLOCK_BYTES = 8 * 1024 * 1024
_BLOCK_ROWS = 16_384
_MAX_RECORD_BYTES = 256 * 1024 * 1024
_NEWLINE = ord("\n")


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
        if self.quote is None:
            return np.flatnonzero(values == _NEWLINE) + 1, False
        marks = np.flatnonzero((values == _NEWLINE) | (values == ord(self.quote)))
        is_newline = values[marks] == _NEWLINE
        quoted = (np.cumsum(~is_newline) + inside) % 2 == 1
        ends_inside = bool(quoted[-1]) if len(quoted) else inside
        return marks[is_newline & ~quoted] + 1, ends_inside

    def written(self, data: bytes, bounds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Tell for each stretch between two bounds whether it is more than blank."""
        begins = np.frombuffer(data, np.uint8)[bounds[:-1]]
        found: np.ndarray[Any, Any] = ~np.isin(begins, list(self.blank))
        # Few lines begin with a blank.
        for at in np.flatnonzero(~found):
            found[at] = bool(data[bounds[at] : bounds[at + 1]].strip(self.blank))
        return found


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
        rest = [] if len(stops) and stops[-1] == len(data) else [len(data)]
        written = dialect.written(data, np.concatenate([[0], stops, rest]).astype(np.int64))
        written[0] |= self.written
        self._cut(stops + self.offset, np.cumsum(written[: len(stops)]))
        self.written = bool(written[-1]) if rest else False
        self.offset += len(data)

    def _cut(self, stops: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> None:
        """Close blocks behind records that end at `stops`; `rows` counts those that are not blank."""
        counted = 0
        while True:
            full = np.searchsorted(rows, counted + _BLOCK_ROWS - self.rows)
            large = np.searchsorted(stops, self.block_start + _BLOCK_BYTES)
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


def read_head(
    store: Store, uri: str, *, version: str | None, size: int, dialect: Dialect, records: int = 1
) -> bytes:
    """Return the first records of a file: as many as end within `size` bytes, `records` at least.

    Raises DataError where they are UTF-16.
    """
    pieces: list[bytes] = []
    found = offset = end = 0
    inside = False
    with contextlib.closing(open_text(store, uri, version=version)) as stream:
        while found < records and offset <= _MAX_RECORD_BYTES and (piece := stream.read(size)):
            stops, inside = dialect.edges(piece, inside=inside)
            end = offset + int(stops[-1]) if len(stops) else end
            found += len(stops)
            offset += len(piece)
            pieces.append(piece)
    if pieces and pieces[0].startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the file is UTF-16", where=uri, hint="convert it to UTF-8")
    # A small file is whole, and its last record needs no newline.
    whole = offset % size != 0
    return b"".join(pieces)[: offset if whole else end or size]


def scan(store: Store, uri: str, *, version: str, start: int, dialect: Dialect) -> tuple[Block, ...]:
    """Find the blocks of a file from offset `start` on: about 16,384 records or 8 MiB each.

    Raises DataError for a quote that is never closed, and for a record above 256 MiB.
    """
    state = _Scan(offset=start, block_start=start, record_start=start)
    with contextlib.closing(open_text(store, uri, version=version)) as stream:
        skip(stream, start)
        while data := stream.read(READ_BYTES):
            state.add(data, dialect)
            if state.offset - state.record_start > _MAX_RECORD_BYTES:
                break
        too_long = state.offset - state.record_start > _MAX_RECORD_BYTES
    if too_long or state.inside:
        line = line_at(store, uri, version=version, offset=state.record_start)
        quoted = "a quote is never closed" if state.inside else ""
        raise DataError(
            quoted or f"a line is longer than {_MAX_RECORD_BYTES:,} bytes",
            where=f"{uri}:{line} and on",
            hint=f"mend the record, or set input.quote: null if {dialect.quote} quotes nothing"
            if quoted
            else "lines must end with a newline",
        )
    return state.finish()


def first_bad(data: bytes, dialect: Dialect, is_good: Callable[[bytes], bool]) -> int:
    """Return the line, from 0, of the first record with which the data stops being good."""
    edges, _ = dialect.edges(data)
    stops = [0, *edges.tolist()] + ([len(data)] if not data.endswith(b"\n") else [])
    low, high = 0, len(stops) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_good(data[: stops[middle]]) else (low, middle)
    return data.count(b"\n", 0, stops[low])
