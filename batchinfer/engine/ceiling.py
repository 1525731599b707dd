"""How much of a batch fits into memory at once: learnt from batches that did not, remembered for later runs.

Remembered is what a machine's user may lose at any time: a small JSON file in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batchinfer.data import HostBatch

_KEPT_S = 30 * 86_400.0
_MOST_ENTRIES = 256


class Ceiling:
    """Rows that fit, by how long they are: by powers of two. Of packed rows, the tokens that fit.

    `model` and `device` say for whom it holds. Not thread-safe where it matters little: two threads that
    learn at once learn the same.
    """

    def __init__(self, model: Mapping[str, Any], device: str) -> None:
        text = json.dumps([model, device], sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._device = device
        self._most = {
            int(bucket): most for bucket, most in _read().get(self._key, {}).get("most", {}).items()
        }

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
        if most < 1 or most >= self._most.get(bucket, most + 1):
            return
        self._most[bucket] = most
        unit = "packed tokens" if batch.is_packed else "rows"
        wide = f" of up to {bucket:,} tokens" if batch.width else ""
        whole = _size(batch, 0, len(batch.rows))
        # What a worker prints is shown by its parent.
        said = f"{whole:,} {unit}{wide} do not fit; from now on {most:,} at once"
        sys.stderr.write(f"memory of {self._device}: {said}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            self._remember()

    def _remember(self) -> None:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = _read()
        entries[self._key] = {"at": time.time(), "most": {str(key): most for key, most in self._most.items()}}
        newest = sorted(entries, key=lambda key: entries[key]["at"])[-_MOST_ENTRIES:]
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({key: entries[key] for key in newest}, file)
        Path(file.name).replace(path)


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


def _path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "batchinfer" / "memory.json"


def _read() -> dict[str, Any]:
    """Return what is remembered and not too old; nothing where the file is damaged or away."""
    try:
        entries = json.loads(_path().read_text())
        now = time.time()
        return {
            key: entry
            for key, entry in entries.items()
            if now - entry["at"] < _KEPT_S and all(int(most) > 0 for most in entry["most"].values())
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return {}
