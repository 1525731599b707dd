"""How many rows fit into memory at once: learnt from batches that did not, and remembered for later runs.

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchinfer.data import HostBatch

_KEPT_S = 30 * 86_400.0
_MOST_ENTRIES = 256


class Ceiling:
    """Rows that fit, by how long they are: lengths are taken together by powers of two.

    `model` and `device` say for whom it holds. Not thread-safe where it matters little: two threads that
    learn at once learn the same.
    """

    def __init__(self, model: Mapping[str, Any], device: str) -> None:
        text = json.dumps([model, device], sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._device = device
        self._rows = {
            int(bucket): rows for bucket, rows in _read().get(self._key, {}).get("rows", {}).items()
        }

    def rows(self, batch: HostBatch) -> int | None:
        """Return how many rows as long as a batch's fit; None where nothing is known to the contrary."""
        return self._rows.get(_bucket(batch))

    def learn(self, batch: HostBatch, rows: int) -> None:
        """Take note that only so many rows of a batch fitted."""
        if rows < 1 or rows >= self._rows.get(_bucket(batch), rows + 1):
            return
        self._rows[_bucket(batch)] = rows
        wide = f" of up to {_bucket(batch):,} tokens" if batch.width else ""
        # What a worker prints is shown by its parent.
        said = f"{len(batch.rows):,} rows{wide} do not fit; from now on {rows:,} at once"
        sys.stderr.write(f"memory of {self._device}: {said}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            self._remember()

    def _remember(self) -> None:
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = _read()
        entries[self._key] = {"at": time.time(), "rows": {str(key): rows for key, rows in self._rows.items()}}
        newest = sorted(entries, key=lambda key: entries[key]["at"])[-_MOST_ENTRIES:]
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({key: entries[key] for key in newest}, file)
        Path(file.name).replace(path)


def _bucket(batch: HostBatch) -> int:
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
            if now - entry["at"] < _KEPT_S and all(int(rows) > 0 for rows in entry["rows"].values())
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return {}
