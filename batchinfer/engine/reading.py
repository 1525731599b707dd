"""Rows as they are read: ahead of everything, in chunks of some 16 MiB, whatever a file's row groups are."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.crash import crash_point
from batchinfer.data import Chunk, Unit, UnitEnd
from batchinfer.engine.room import Room, chunk_bytes
from batchinfer.errors import unit_context
from batchinfer.loader.prefetch import Bound, Levels, head_start

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.protocols import Source

MAX_CHUNK_ROWS = 32_768
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timed:
    """Rows as they were read, and when."""

    rows: Chunk | UnitEnd
    at: float


def start_reading(
    units: Iterable[Unit],
    source: Source,
    *,
    schema: pa.Schema,
    columns: Sequence[str],
    room: Room,
    levels: Levels,
) -> Generator[Timed, None, None]:
    """Begin to read some columns, with the types of the plan's schema, in a thread. What comes back must
    be closed."""
    items = read(units, source, schema, columns)
    return head_start(
        items,
        bound=Bound(8, room.read),
        size_of=lambda item: chunk_bytes(item.rows),
        name="read",
        levels=levels,
    )


def read(
    units: Iterable[Unit], source: Source, schema: pa.Schema, columns: Sequence[str]
) -> Generator[Timed, None, None]:
    """Read units one after the other, each followed by its end."""
    for unit in units:
        with unit_context(unit):
            rows = _rows_per_chunk(unit)
            crash_point("read.open")
            for chunk in source.read(unit, schema=schema, columns=columns, batch_rows=rows):
                yield Timed(chunk, time.perf_counter())
                crash_point("read.mid")
        yield Timed(UnitEnd(unit), time.perf_counter())


def _rows_per_chunk(unit: Unit) -> int:
    """Keep a chunk near 16 MiB, by what the footer says of its rows. The same for every run; and a power of
    two, as batches are by default: one that lies across a seam must be copied."""
    num_bytes = sum(block.num_bytes for block in unit.shard.blocks)
    row_bytes = max(num_bytes // max(unit.shard.num_rows, 1), 1)
    rows = max(1, min(MAX_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    return 1 << (rows.bit_length() - 1)


def pieces(chunks: Generator[Timed, None, None], num_rows: int) -> Generator[Timed, None, None]:
    """Cut chunks into pieces of at most so many rows: encoded, they may be far larger."""
    with closing(chunks):
        for item in chunks:
            if isinstance(item.rows, UnitEnd) or len(item.rows.numbers) <= num_rows:
                yield item
                continue
            whole = item.rows
            for at in range(0, len(whole.numbers), num_rows):
                rows, numbers = whole.rows.slice(at, num_rows), whole.numbers[at : at + num_rows]
                yield Timed(Chunk(whole.unit, rows, numbers), item.at)
