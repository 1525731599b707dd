"""Encoded chunks to windows: the scope of length sorting, of restoring the order, and of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from batchinfer.data import EncodedChunk, HostBatch, Span, Unit, UnitEnd, Window
from batchinfer.loader.batches import BatchPolicy, cut, is_ragged, make_batches
from batchinfer.tensors import num_bytes


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """When a window is full: at so many rows, or so many encoded and carried bytes, whichever is first."""

    rows: int
    num_bytes: int


def batches_of(
    chunks: Iterable[EncodedChunk | UnitEnd], windows: WindowPolicy, policy: BatchPolicy
) -> Iterator[HostBatch]:
    """Yield the batches of a stream of units. The stream does not pause between units."""
    pending: list[EncodedChunk] = []
    start = waiting = size = 0
    for item in chunks:
        if isinstance(item, UnitEnd):
            yield from _close(item.unit, pending, start, last=True, policy=policy)
            pending, start, waiting, size = [], 0, 0, 0
            continue
        for piece in _pieces(item, room=windows.rows - waiting, size=windows.rows):
            pending.append(piece)
            waiting += piece.carried.num_rows
            size += num_bytes(piece.tensors) + num_bytes(piece.carried)
            if waiting >= windows.rows or size >= windows.num_bytes:
                yield from _close(item.unit, pending, start, last=False, policy=policy)
                pending, start, waiting, size = [], start + waiting, 0, 0


def _pieces(chunk: EncodedChunk, *, room: int, size: int) -> Iterator[EncodedChunk]:
    """Cut a chunk where windows end: its first `room` rows, then `size` rows each."""
    start, num_rows = 0, chunk.carried.num_rows
    while start < num_rows:
        stop = min(start + (room if start == 0 else size), num_rows)
        if start == 0 and stop == num_rows:
            yield chunk
            return
        low, high = np.searchsorted(chunk.good, [start, stop])
        yield EncodedChunk(
            unit=chunk.unit,
            carried=chunk.carried.slice(start, stop - start),
            tensors=chunk.tensors.slice(low, high - low),
            good=chunk.good[low:high] - start,
            failed={row - start: error for row, error in chunk.failed.items() if start <= row < stop},
            trail=chunk.trail,
        )
        start = stop


def _close(
    unit: Unit, pending: list[EncodedChunk], start: int, *, last: bool, policy: BatchPolicy
) -> Iterator[HostBatch]:
    """Make one window of the pending chunks, and its batches."""
    if not pending:
        window = Window(Span(unit, start, start, last), None, np.empty(0, np.int64), {}, 1)
        yield HostBatch(window=window, rows=window.good, tensors={})
        return
    bases = np.cumsum([0, *(chunk.carried.num_rows for chunk in pending)])
    rows = _together([chunk.tensors for chunk in pending], policy)
    cuts = cut(rows, policy)
    window = Window(
        span=Span(unit, start, start + int(bases[-1]), last),
        carried=pa.Table.from_batches([chunk.carried for chunk in pending]),
        good=np.concatenate([chunk.good + base for chunk, base in zip(pending, bases[:-1], strict=True)]),
        failed={
            row + int(base): error
            for chunk, base in zip(pending, bases[:-1], strict=True)
            for row, error in chunk.failed.items()
        },
        num_batches=max(len(cuts), 1),
        trail=pending[-1].trail,
    )
    yield from make_batches(window, rows, cuts, policy)


def _together(pieces: list[pa.RecordBatch], policy: BatchPolicy) -> pa.RecordBatch | pa.Table:
    """Put the rows of a window together: by a copy where they will be sorted, else where they lie."""
    if len(pieces) == 1:
        return pieces[0]
    return pa.concat_batches(pieces) if is_ragged(pieces[0], policy) else pa.Table.from_batches(pieces)
