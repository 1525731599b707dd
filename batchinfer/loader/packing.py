"""Rows one after the other in a single sequence, without padding: for models whose attention is told
where rows begin (`cu_seqlens`, as flash attention calls it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.arrow_views import column_of, values_of
from batchinfer.errors import DataError

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, Packing, Tensors
    from batchinfer.loader.batches import BatchPolicy, Binding

_FEWEST_TOKENS = 16
"""Where a packed batch has a fixed shape, it has room for rows of so many tokens on average."""


def cut_packed(lengths: np.ndarray[Any, Any], policy: BatchPolicy) -> list[np.ndarray[Any, Any]]:
    """Return the rows of each batch, in their order: as many as fit, at least one."""
    ends = np.cumsum(lengths)
    most = _num_slots(policy) if policy.fixed or policy.by == "rows" else len(lengths)
    batches, at = [], 0
    while at < len(lengths):
        before = int(ends[at - 1]) if at else 0
        stop = at + most
        if policy.by != "rows":
            stop = min(stop, int(np.searchsorted(ends, before + _num_tokens(policy), side="right")))
        stop = min(max(stop, at + 1), len(lengths))
        batches.append(np.arange(at, stop))
        at = stop
    return batches


def packed_tensors(
    rows: pa.RecordBatch, lengths: np.ndarray[Any, Any], policy: BatchPolicy, packing: Packing
) -> tuple[Tensors, int, int]:
    """Return a packed batch, its tokens, and the rows that only fill it up.

    Its tensors are the values, of shape (tokens,); `position_ids`, which begin at 0 in each row;
    `cu_seqlens`, where rows begin and the last one ends, int32; and `max_seqlen`, the longest row, as an
    Arrow array of one number, which stays in host memory. With a fixed shape the sequence is filled up with
    tokens that belong to no row, and `cu_seqlens` with rows of none.
    """
    real = int(lengths.sum())
    tokens, filled = max(real, 1), 0
    if policy.fixed:
        room = _num_tokens(policy)
        tokens, filled = -(-tokens // room) * room, _num_slots(policy) - len(lengths)
    ends = np.concatenate([[0], np.cumsum(lengths), np.full(filled, real)])
    positions = np.zeros(tokens, np.int64)
    positions[:real] = np.arange(real) - np.repeat(ends[: len(lengths)], lengths)
    found: dict[str, Any] = {}
    for bind in policy.bindings:
        if bind.input in packing.ones:
            _require_ones(rows[bind.column], bind)
        else:
            found[bind.input] = _flat(rows, bind, tokens, lengths)
    found["position_ids"] = positions
    found["cu_seqlens"] = ends.astype(np.int32)
    found["max_seqlen"] = column_of(np.array([max(int(lengths.max(initial=0)), 1)], np.int32))
    return found, tokens, filled


def packed_piece(batch: HostBatch, start: int, stop: int) -> tuple[Tensors, int]:
    """Return the tensors of rows [start, stop) of a packed batch, and the rows that only fill it up.

    With a fixed shape they are as long as the batch's.
    """
    starts = batch.tensors["cu_seqlens"]
    first, last = int(starts[start]), int(starts[stop])
    ends = starts[start : stop + 1] - first
    filled = len(starts) - len(ends) if batch.fixed else 0
    found: dict[str, Any] = {}
    for name, column in batch.tensors.items():
        if name == "cu_seqlens":
            found[name] = np.concatenate([ends, np.full(filled, ends[-1], ends.dtype)])
        elif name == "max_seqlen":
            found[name] = column_of(np.array([max(int(np.diff(ends).max(initial=0)), 1)], np.int32))
        else:
            room = len(column) if batch.fixed else max(last - first, 1)
            found[name] = np.resize(column[first : max(last, first + 1)], room)
    return found, filled


def packed_stand_ins(batch: HostBatch, bad: np.ndarray[Any, Any]) -> Tensors:
    """Return the tensors of a packed batch with a value of a good row wherever a bad row had one; with zeros
    where the good rows have no values."""
    starts = batch.tensors["cu_seqlens"]
    hidden = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(starts[row], starts[row + 1]) for row in bad)]
    )
    shown = np.setdiff1d(np.arange(starts[-1]), hidden)
    found = dict(batch.tensors)
    for name, column in batch.tensors.items():
        if name not in {"cu_seqlens", "max_seqlen", "position_ids"}:
            found[name] = column.copy()
            found[name][hidden] = column[shown[0]] if len(shown) else 0
    return found


def packable(bindings: Sequence[Binding], schema: pa.Schema, packing: Packing) -> bool:
    """Tell whether every input is a ragged column that the model knows how to take packed."""
    known = {*packing.values, *packing.ones}
    return all(bind.input in known and tensors.is_ragged(schema.field(bind.column).type) for bind in bindings)


def _num_tokens(policy: BatchPolicy) -> int:
    """Return the tokens of a full batch, by whatever its size counts."""
    if policy.by == "bytes":
        # Positions are one more number for each token.
        each = sum(np.dtype(bind.dtype).itemsize for bind in policy.bindings) + np.dtype(np.int64).itemsize
        return max(policy.size // each, 1)
    return policy.size


def _num_slots(policy: BatchPolicy) -> int:
    """Return the rows for which a batch has room."""
    return policy.size if policy.by == "rows" else max(_num_tokens(policy) // _FEWEST_TOKENS, 1)


def _flat(rows: pa.RecordBatch, bind: Binding, tokens: int, lengths: np.ndarray[Any, Any]) -> Any:
    """Return a column's values, one row after the other, filled up to `tokens`."""
    column = rows[bind.column]
    if not np.array_equal(tensors.lengths(column), lengths):
        raise DataError(
            f"column {bind.column!r} has not as many values in each row as the model's other inputs"
        )
    values = values_of(column.flatten())
    if len(values) == tokens:
        return np.ascontiguousarray(values, dtype=bind.dtype)
    metadata = rows.schema.field(bind.column).metadata or {}
    flat = np.full(tokens, float(metadata.get(b"pad", b"0")), dtype=bind.dtype)
    flat[: len(values)] = values
    return flat


def _require_ones(column: pa.Array, bind: Binding) -> None:
    values = values_of(column.flatten())
    if not (values == 1).all():
        raise DataError(
            f"column {bind.column!r} hides tokens inside rows, which a packed batch cannot",
            hint="batching: {packed: false}",
        )
