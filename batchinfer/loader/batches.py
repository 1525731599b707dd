"""Encoded rows to batches: dense rows as they come, ragged rows sorted by length and padded, or packed.

What a batch holds depends on the unit and the job alone, never on timing: a repeated unit gives the
same batches, and so the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import HostBatch, Packing, Window
from batchinfer.loader.costs import cost_of
from batchinfer.loader.packing import cut_packed, packed_piece, packed_stand_ins, packed_tensors
from batchinfer.loader.shapes import rounded

if TYPE_CHECKING:
    from batchinfer.config.machine import By


@dataclass(frozen=True, slots=True)
class Binding:
    """Which column feeds which model input, as which dtype; a number per row may feed a vector of one, and
    raw bytes a tensor of shape (rows, *`raw`)."""

    input: str
    column: str
    dtype: str
    as_vector: bool = False
    raw: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """How rows are put together: at most `size` rows, padded tokens, or bytes to a batch.

    With `fixed`, every batch has one of few shapes: ragged rows are padded to one of `lengths`, and a batch
    has as many rows as fit at its length, the missing ones made up. With `packing`, rows are not padded.
    """

    size: int
    by: By
    bindings: tuple[Binding, ...]
    fixed: bool = False
    lengths: tuple[int, ...] = ()
    packing: Packing | None = None


def cut(rows: pa.RecordBatch | pa.Table, policy: BatchPolicy) -> list[np.ndarray[Any, Any]]:
    """Return the rows of each batch, as positions in `rows`: int64 arrays of shape (batch rows,)."""
    lengths = _row_lengths(rows, policy.bindings)
    if lengths is not None and policy.packing is not None:
        return cut_packed(lengths, policy)
    cost = cost_of(policy.by, rows.schema, policy.bindings, rows)
    # Longest first: what does not fit into memory fails at the start, and the tail stays short.
    order = np.arange(len(rows)) if lengths is None else np.argsort(-lengths, kind="stable")
    batches, at = [], 0
    while at < len(order):
        width = rounded(int(lengths[order[at]]), policy.lengths) if lengths is not None else 1
        count = cost.fitting(order[at:], width, policy.size)
        batches.append(order[at : at + count])
        at += count
    return batches


def make_batches(
    window: Window,
    rows: pa.RecordBatch | pa.Table,
    cuts: Sequence[np.ndarray[Any, Any]],
    policy: BatchPolicy,
) -> Iterator[HostBatch]:
    """Yield the batches of one window; one empty batch where it has no good row."""
    for positions in cuts:
        picked = _pick(rows, positions)
        lengths = _row_lengths(picked, policy.bindings)
        if lengths is not None and policy.packing is not None:
            packed, tokens, filled = packed_tensors(picked, lengths, policy, policy.packing)
            yield HostBatch(
                window=window,
                rows=window.good[positions],
                tensors=packed,
                real_tokens=int(lengths.sum()),
                padded_tokens=tokens,
                lengths=lengths,
                filled=filled,
                fixed=policy.fixed,
            )
            continue
        width = rounded(int(lengths.max(initial=0)), policy.lengths) if lengths is not None else 0
        filled = _num_missing(picked, width, policy)
        yield HostBatch(
            window=window,
            rows=window.good[positions],
            tensors={
                bind.input: _filled(_tensor(picked, bind, width if policy.lengths else None), filled)
                for bind in policy.bindings
            },
            real_tokens=int(lengths.sum()) if lengths is not None else 0,
            padded_tokens=width * (len(positions) + filled),
            lengths=lengths,
            width=width,
            filled=filled,
            fixed=policy.fixed,
        )
    if not cuts:
        yield HostBatch(window=window, rows=np.empty(0, np.int64), tensors={})


def _num_missing(rows: pa.RecordBatch, width: int, policy: BatchPolicy) -> int:
    """Return how many rows a batch lacks of those that its shape has."""
    if not policy.fixed:
        return 0
    cost = cost_of(policy.by, rows.schema, policy.bindings, None)
    return max(policy.size // cost.of(max(width, 1)), 1) - len(rows)


def _filled(column: Any, num_missing: int) -> Any:
    """Repeat the last row, which cannot bring in a value that is not there."""
    if not num_missing:
        return column
    return np.concatenate([column, np.repeat(column[-1:], num_missing, axis=0)])


def _row_lengths(rows: pa.RecordBatch | pa.Table, bindings: Sequence[Binding]) -> np.ndarray[Any, Any] | None:
    """Return each row's longest ragged input, or None where no input is ragged."""
    ragged = [tensors.lengths(rows[bind.column]) for bind in bindings if _ragged(rows, bind)]
    return np.maximum.reduce(ragged) if ragged else None


def _ragged(rows: pa.RecordBatch | pa.Table, bind: Binding) -> bool:
    return tensors.is_ragged(rows.schema.field(bind.column).type)


def is_ragged(rows: pa.RecordBatch, policy: BatchPolicy) -> bool:
    """Tell whether some input has rows of varying length, by which they are sorted."""
    return any(_ragged(rows, bind) for bind in policy.bindings)


def _pick(rows: pa.RecordBatch | pa.Table, positions: np.ndarray[Any, Any]) -> pa.RecordBatch:
    """Take rows; neighbours in order are a view, unless they stand on both sides of a seam of a table."""
    if not (positions[-1] - positions[0] == len(positions) - 1 and _ascending(positions)):
        return rows.take(positions)
    picked = rows.slice(int(positions[0]), len(positions))
    if isinstance(picked, pa.RecordBatch):
        return picked
    pieces = picked.to_batches()
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)


def _ascending(positions: np.ndarray[Any, Any]) -> bool:
    return bool((np.diff(positions) == 1).all())


def _tensor(rows: pa.RecordBatch, bind: Binding, width: int | None) -> Any:
    """Return a column as the model takes it: a dense array, padded (to `width`) where it is ragged."""
    column = rows[bind.column]
    if bind.dtype in tensors.NUMERIC:
        if _ragged(rows, bind):
            metadata = rows.schema.field(bind.column).metadata or {}
            dense = tensors.pad(column, value=float(metadata.get(b"pad", b"0")), width=width)
        else:
            dense = tensors.to_numpy(column)
            dense = dense[:, None] if bind.as_vector else dense
            if bind.raw is not None:
                dense = dense.view(bind.dtype).reshape(len(dense), *bind.raw)
        return np.ascontiguousarray(dense, dtype=bind.dtype)
    return column


def piece(batch: HostBatch, start: int, stop: int) -> HostBatch:
    """Return rows [start, stop) of a batch, padded as they were: views, no copies.

    Where the batch has a shape that its model is made for, so has the piece, filled up.
    """
    lengths = None if batch.lengths is None else batch.lengths[start:stop]
    if batch.is_packed:
        tensors_of, filled = packed_piece(batch, start, stop)
    else:
        filled = len(batch.rows) + batch.filled - (stop - start) if batch.fixed else 0
        tensors_of = {name: _filled(column[start:stop], filled) for name, column in batch.tensors.items()}
    rows = batch.rows[start:stop]
    return dataclasses.replace(batch, rows=rows, tensors=tensors_of, lengths=lengths, filled=filled)


def with_stand_ins(batch: HostBatch, bad: Iterable[int]) -> HostBatch:
    """Return a batch of the same shape, with a good row's values in place of those of the bad ones."""
    positions = np.fromiter(bad, np.int64)
    if batch.is_packed:
        return dataclasses.replace(batch, tensors=packed_stand_ins(batch, positions))
    take = np.arange(len(batch.rows) + batch.filled)
    take[positions] = np.setdiff1d(np.arange(len(batch.rows)), positions)[0]
    # What fills it up is its last row again.
    take[len(batch.rows) :] = take[len(batch.rows) - 1]
    tensors_of = {
        name: column[take] if isinstance(column, np.ndarray) else column.take(take)
        for name, column in batch.tensors.items()
    }
    return dataclasses.replace(batch, tensors=tensors_of)
