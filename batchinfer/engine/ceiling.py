"""How much of a batch fits into memory at once: learnt from batches that did not, kept for later runs."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.engine.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchinfer.data import HostBatch
    from batchinfer.engine.memory_use import MemoryUse

_PATIENCE = 16
"""Batches that must have gone through at a ceiling before a higher one is tried."""
_SAFE = 0.8
"""Share of the memory that they must have left a fifth of: one step up takes a quarter more."""


def _is_sound(entry: Mapping[str, Any]) -> bool:
    return all(int(bucket) >= -1 and int(most) > 0 for bucket, most in entry["most"].items())


_CEILINGS = Remembered("memory", days=30, is_sound=_is_sound)


class Ceiling:
    """Rows that fit, by how long they are: by powers of two. Of packed rows, the tokens that fit.

    `model` (its hash, with its options and precision) and `device` (its name) say for whom it holds. It rises
    again, a quarter at a time, where `memory` shows that there is room; a step too far is taken back, and is
    the last. Not thread-safe where it matters little: two threads that learn at once learn the same.
    """

    def __init__(self, model: str, device: str, memory: MemoryUse) -> None:
        text = json.dumps([model, device])
        self._key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._device = device
        self._memory = memory
        found = _CEILINGS.get(self._key).get("most", {})
        self._most = {int(bucket): int(most) for bucket, most in found.items()}
        self._passed: Counter[int] = Counter()
        self._proven: dict[int, int] = {}
        self._final: set[int] = set()

    def cuts(self, batch: HostBatch) -> list[tuple[int, int]]:
        """Return the pieces [start, stop) of a batch that fit: one, where nothing tells otherwise."""
        num_rows = len(batch.rows)
        most = self._most.get(_bucket(batch)) if self._most else None
        if most is None or _size(batch, 0, num_rows) <= most:
            return [(0, num_rows)]
        ends = _sizes(batch)
        cuts, at = [], 0
        while at < num_rows:
            before = int(ends[at - 1]) if at else 0
            stop = max(at + 1, int(np.searchsorted(ends, before + most, side="right")))
            cuts.append((at, stop))
            at = stop
        return cuts

    def learn(self, batch: HostBatch, fitted: Sequence[tuple[int, int]]) -> None:
        """Take note that a batch did not fit, but some pieces of it did."""
        bucket, most = _bucket(batch), max((_size(batch, *cut) for cut in fitted), default=0)
        whole, proven = _size(batch, 0, len(batch.rows)), self._proven.get(bucket, 0)
        self._passed[bucket] = 0
        if 0 < proven < whole:
            # One step too far: back to where it went well.
            most = max(most, proven)
            self._final.add(bucket)
        if most < 1 or most >= self._most.get(bucket, most + 1):
            return
        self._set(batch, most, f"{whole:,} {_named(batch)} do not fit")

    def passed(self, batch: HostBatch) -> None:
        """Take note that all pieces of a batch fitted: after enough of them, with room left, try more."""
        bucket = _bucket(batch)
        most = self._most.get(bucket)
        if most is None or bucket in self._final:
            return
        self._passed[bucket] += 1
        if self._passed[bucket] < _PATIENCE:
            return
        self._passed[bucket] = 0
        share = self._memory.share()
        self._memory.reset()
        if share is None or share >= _SAFE:
            return
        self._proven[bucket] = most
        more = most + max(most // 4, 1)
        self._set(batch, more, f"{most:,} {_named(batch)} leave {1 - share:.0%} free")

    def _set(self, batch: HostBatch, most: int, why: str) -> None:
        self._most[_bucket(batch)] = most
        # What a worker prints is shown by its parent.
        sys.stderr.write(f"memory of {self._device}: {why}; from now on {most:,} at once\n")
        sys.stderr.flush()
        _CEILINGS.put(self._key, {"most": {str(key): value for key, value in self._most.items()}})


def _named(batch: HostBatch) -> str:
    """Say what a batch is counted in."""
    unit = "packed tokens" if batch.is_packed else "rows"
    return f"{unit} of up to {_bucket(batch):,} tokens" if batch.width else unit


def _size(batch: HostBatch, start: int, stop: int) -> int:
    """Return how much rows [start, stop) of a batch are: rows, or tokens where they are packed."""
    ends = _sizes(batch)
    return int(ends[stop - 1]) - (int(ends[start - 1]) if start else 0) if stop > start else 0


def _sizes(batch: HostBatch) -> np.ndarray[Any, Any]:
    """Return how much the rows of a batch are up to each, int64."""
    if batch.is_packed:
        assert batch.lengths is not None
        return np.asarray(np.cumsum(batch.lengths))
    return np.arange(1, len(batch.rows) + 1)


def _bucket(batch: HostBatch) -> int:
    """Return up to how many tokens the rows of a batch have; 0 where they are all alike, -1 packed."""
    if batch.is_packed:
        return -1
    return 1 << (batch.width - 1).bit_length() if batch.width else 0
