"""What rows cost a batch, in whatever its size counts: rows, padded tokens, or bytes on the device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer import tensors

if TYPE_CHECKING:
    from batchinfer.config.machine import By
    from batchinfer.loader.batches import Binding


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row costs: `per_row`, `per_token` of its padded length, and what its texts hold."""

    per_row: int
    per_token: int
    texts: np.ndarray[Any, Any] | None = None

    def of(self, width: int) -> int:
        """Return what a row padded to `width` costs, without its texts; at least 1."""
        return max(self.per_row + self.per_token * width, 1)

    def fitting(self, order: np.ndarray[Any, Any], width: int, size: int) -> int:
        """Return how many rows in this order fit into `size`, each padded to `width`; at least one."""
        count = max(size // self.of(width), 1)
        if self.texts is None:
            return count
        # No more rows than would fit without their texts need be looked at.
        held = np.cumsum(self.texts[order[:count]])
        each = self.of(width)
        return max(bisect_right(range(len(held)), size, key=lambda at: int(held[at]) + (at + 1) * each), 1)


def cost_of(by: By, schema: pa.Schema, bindings: Sequence[Binding], rows: pa.RecordBatch | None) -> Cost:
    """Return what rows cost; without `rows`, what any do, apart from their texts."""
    if by == "rows":
        return Cost(1, 0)
    if by == "tokens":
        return Cost(0, 1)
    per_row = per_token = 0
    texts = None
    for bind in bindings:
        type_ = schema.field(bind.column).type
        if bind.dtype not in tensors.NUMERIC:
            if rows is not None:
                held = _text_bytes(rows[bind.column])
                texts = held if texts is None else texts + held
        elif tensors.is_ragged(type_):
            per_token += np.dtype(bind.dtype).itemsize
        else:
            shape = tensors.spec_of(bind.column, type_).shape[1:] if bind.raw is None else bind.raw
            sizes = [size or 1 for size in shape]
            per_row += int(np.prod(sizes)) * np.dtype(bind.dtype).itemsize
    return Cost(per_row, per_token, texts)


def _text_bytes(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return the bytes of each row's text; of anything else that is no tensor, what it has on average."""
    kind = column.type
    if any(is_(kind) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        import pyarrow.compute as pc  # late: it takes a while

        return np.asarray(pc.binary_length(column).fill_null(0), np.int64)
    return np.full(len(column), -(-column.nbytes // max(len(column), 1)), np.int64)
