"""Finished batches of a unit that takes long, put aside so that a restarted unit goes on from them.

Nothing rests on them: a file that is damaged, or whose batches are cut otherwise, is computed again.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from batchinfer.clock import Clock, SystemClock
from batchinfer.crash import crash_point
from batchinfer.engine.publish import new_attempt
from batchinfer.errors import BatchinferError
from batchinfer.storage import AlreadyExists
from batchinfer.tensors import num_bytes

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, TypedBatch
    from batchinfer.engine.commit import OutputLayout
    from batchinfer.storage import Store

_KEYS = b"batchinfer.batches"
_DIGEST_BYTES = 32


_Done: TypeAlias = tuple[int, np.ndarray[Any, Any], pa.RecordBatch]
"""Where a batch's window begins in its unit, its rows in the window, and their results."""


@dataclass(slots=True)
class _UnitSpill:
    """What is known of one unit. `waiting` batches are not yet written."""

    began: float
    flushed: float
    attempt: str = field(default_factory=new_attempt)
    restored: dict[str, pa.RecordBatch] = field(default_factory=dict)
    waiting: list[_Done] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    num_files: int = 0
    writes: list[Future[None]] = field(default_factory=list)


class Spills:
    """A worker's units in progress. `expected` are those that may have batches put aside already.

    `restore` is called from the device's thread, everything else from the one that writes.
    """

    def __init__(
        self,
        store: Store,
        layout: OutputLayout,
        results: pa.Schema,
        *,
        every_s: float | None,
        max_bytes: int,
        expected: set[int],
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._results = results
        self._every_s = every_s
        self._max_bytes = max_bytes
        self._expected = expected
        self._clock = clock or SystemClock()
        self._units: dict[int, _UnitSpill] = {}
        self._lock = threading.Lock()

    def restore(self, batch: HostBatch) -> tuple[pa.Array, ...] | None:
        """Return the results of a batch that an earlier attempt has finished."""
        if not len(batch.rows):
            return None
        restored = self._unit(batch.window.span.unit.index).restored
        found = restored.get(_key(batch.window.span.start, batch.rows)) if restored else None
        return None if found is None else tuple(found.columns)

    def add(self, typed: TypedBatch, pool: Executor, *, may_write: bool) -> None:
        """Take a finished batch, where anything may be written yet; put what has gathered aside when it is
        time."""
        unit = typed.batch.window.span.unit
        state = self._unit(unit.index)
        if self._every_s is None or not may_write or not len(typed.batch.rows):
            return
        state.num_rows += len(typed.batch.rows)
        if typed.restored or state.num_bytes > self._max_bytes:
            return
        rows = pa.RecordBatch.from_arrays(list(typed.columns), schema=self._results)
        state.waiting.append((typed.batch.window.span.start, typed.batch.rows, rows))
        state.num_bytes += num_bytes(rows)
        now = self._clock.now()
        if now - state.flushed < self._every_s or self._ends_soon(state, unit.num_rows, now):
            return
        state.flushed = now
        waiting = {_key(start, picked): found for start, picked, found in state.waiting}
        state.waiting = []
        state.num_files += 1
        name = f"{self._layout.spill_folder(unit.index)}/{state.num_files:04d}-{state.attempt}.arrow"
        state.writes.append(pool.submit(self._write, self._layout.uri(name), waiting))

    def clear(self, unit: int) -> None:
        """Remove what was put aside for a unit that is committed now."""
        with self._lock:
            state = self._units.pop(unit, None)
        if state is None or not (state.num_files or state.restored):
            return
        for write in state.writes:
            write.exception()
        try:
            for entry in self._store.entries(self._layout.uri(self._layout.spill_folder(unit))):
                self._store.delete(entry.uri)
        except BatchinferError:
            return  # the unit is committed all the same; `gc` finds what is left

    def _unit(self, index: int) -> _UnitSpill:
        with self._lock:
            state = self._units.get(index)
            if state is None:
                now = self._clock.now()
                state = self._units[index] = _UnitSpill(began=now, flushed=now)
                if index in self._expected:
                    state.restored = self._read(index)
            return state

    def _ends_soon(self, state: _UnitSpill, num_rows: int, now: float) -> bool:
        """Tell whether the unit will be committed before putting aside could pay."""
        assert self._every_s is not None
        left_s = (now - state.began) * (num_rows - state.num_rows) / max(state.num_rows, 1)
        return left_s < self._every_s / 2

    def _write(self, uri: str, batches: Mapping[str, pa.RecordBatch]) -> None:
        schema = self._results.with_metadata({_KEYS: json.dumps(list(batches))})
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, schema) as stream:
            for rows in batches.values():
                stream.write_batch(rows)
        body = out.getvalue()
        crash_point("spill.before")
        try:
            self._store.create(uri, hashlib.sha256(body).digest() + body.to_pybytes())
        except (BatchinferError, AlreadyExists):
            return  # a store that is away costs a restart its saving, and nothing else
        crash_point("spill.after")

    def _read(self, unit: int) -> dict[str, pa.RecordBatch]:
        """Read what earlier attempts have put aside."""
        found: dict[str, pa.RecordBatch] = {}
        try:
            for entry in self._store.entries(self._layout.uri(self._layout.spill_folder(unit))):
                found |= self._decoded(self._store.read(entry.uri))
        except BatchinferError:
            return found
        return found

    def _decoded(self, data: bytes) -> dict[str, pa.RecordBatch]:
        body = data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            return {}
        with pa.ipc.open_stream(body) as stream:
            if not stream.schema.equals(self._results):
                return {}
            keys = json.loads(stream.schema.metadata[_KEYS])
            return dict(zip(keys, stream, strict=True))


def _key(start: int, rows: np.ndarray[Any, Any]) -> str:
    """Name a batch by the place of its window in the unit, and by its rows in the window."""
    return f"{start}-{len(rows)}-{zlib.crc32(rows.tobytes()):08x}"
