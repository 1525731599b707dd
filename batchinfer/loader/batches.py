"""Encoded rows to batches: dense rows as they come, ragged rows sorted by length and padded.

What a batch holds depends on the unit and the job alone, never on timing: a repeated unit gives the
same batches, and so the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer import tensors
from batchinfer.data import HostBatch, Window

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Binding:
    """Which column feeds which model input, as which dtype; a number per row may feed a vector of one."""

    input: str
    column: str
    dtype: str
    as_vector: bool = False


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How rows are put together: at most `size` rows, or padded tokens, to a batch."""

    size: int
    by_tokens: bool
    bindings: tuple[Binding, ...]


def cut(rows: pa.RecordBatch, policy: BatchPolicy) -> list[np.ndarray[Any, Any]]:
    """Return the rows of each batch, as positions in `rows`: int64 arrays of shape (batch rows,)."""
    sizes = _row_lengths(rows, policy.bindings)
    if sizes is None:
        return [np.arange(at, min(at + policy.size, len(rows))) for at in range(0, len(rows), policy.size)]
    # Longest first: what does not fit into memory fails at the start, and the tail stays short.
    order = np.argsort(-sizes, kind="stable")
    batches, at = [], 0
    while at < len(order):
        longest = max(int(sizes[order[at]]), 1)
        count = max(policy.size // longest, 1) if policy.by_tokens else policy.size
        batches.append(order[at : at + count])
        at += count
    return batches


def make_batches(
    window: Window, rows: pa.RecordBatch, cuts: Sequence[np.ndarray[Any, Any]], policy: BatchPolicy
) -> Iterator[HostBatch]:
    """Yield the batches of one window; one empty batch where it has no good row."""
    for positions in cuts:
        picked = _pick(rows, positions)
        ragged = _row_lengths(picked, policy.bindings)
        yield HostBatch(
            window=window,
            rows=window.good[positions],
            tensors={bind.input: _tensor(picked, bind) for bind in policy.bindings},
            real_tokens=int(ragged.sum()) if ragged is not None else 0,
            padded_tokens=int(ragged.max(initial=0)) * len(ragged) if ragged is not None else 0,
        )
    if not cuts:
        yield HostBatch(window=window, rows=np.empty(0, np.int64), tensors={})


def _row_lengths(rows: pa.RecordBatch, bindings: Sequence[Binding]) -> np.ndarray[Any, Any] | None:
    """Return each row's longest ragged input, or None where no input is ragged."""
    ragged = [tensors.lengths(rows[bind.column]) for bind in bindings if _ragged(rows, bind)]
    return np.maximum.reduce(ragged) if ragged else None


def _ragged(rows: pa.RecordBatch, bind: Binding) -> bool:
    return tensors.is_ragged(rows.schema.field(bind.column).type)


def _pick(rows: pa.RecordBatch, positions: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """Take rows; neighbours in order are a view, not a copy."""
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1 and _ascending(positions):
        return rows.slice(int(positions[0]), len(positions))
    return rows.take(positions)


def _ascending(positions: np.ndarray[Any, Any]) -> bool:
    return bool((np.diff(positions) == 1).all())


def _tensor(rows: pa.RecordBatch, bind: Binding) -> Any:
    """Return a column as the model takes it: a dense array, padded where it is ragged."""
    column = rows[bind.column]
    if bind.dtype in tensors.NUMERIC:
        if _ragged(rows, bind):
            metadata = rows.schema.field(bind.column).metadata or {}
            dense = tensors.pad(column, value=float(metadata.get(b"pad", b"0")))
        else:
            dense = tensors.to_numpy(column)
            dense = dense[:, None] if bind.as_vector else dense
        return np.ascontiguousarray(dense, dtype=bind.dtype)
    return column


def piece(batch: HostBatch, start: int, stop: int) -> HostBatch:
    """Return rows [start, stop) of a batch, padded as they were: views, no copies."""
    tensors_of = {name: column[start:stop] for name, column in batch.tensors.items()}
    return HostBatch(window=batch.window, rows=batch.rows[start:stop], tensors=tensors_of)


def with_stand_ins(batch: HostBatch, bad: Iterable[int]) -> HostBatch:
    """Return a batch of the same shape, with copies of a good row in place of the bad ones."""
    take = np.arange(len(batch.rows))
    positions = np.fromiter(bad, np.int64)
    take[positions] = np.setdiff1d(take, positions)[0]
    tensors_of = {
        name: column[take] if isinstance(column, np.ndarray) else column.take(take)
        for name, column in batch.tensors.items()
    }
    return HostBatch(window=batch.window, rows=batch.rows, tensors=tensors_of)
