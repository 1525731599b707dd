"""What later runs may know of earlier ones: small JSON files in the user's cache folder.

Nothing rests on them: they may be lost at any time, and a damaged one counts as empty.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_VARIABLE = "BATCHINFER_CACHE"
_MOST_ENTRIES = 256
_DAY_S = 86_400.0


class Remembered:
    """One file of entries by key; each is a mapping, and is forgotten after so many days.

    `BATCHINFER_CACHE` names the folder, or says `off`; without it, it is `batchinfer` in the user's cache
    folder (`XDG_CACHE_HOME`, or ~/.cache). `is_sound` tells an entry that can be used from one that cannot.
    """

    def __init__(self, name: str, *, days: int, is_sound: Callable[[Mapping[str, Any]], bool]) -> None:
        self._name = name
        self._kept_s = days * _DAY_S
        self._is_sound = is_sound

    @property
    def path(self) -> Path | None:
        """Where the file is, or would be; None where nothing is to be remembered."""
        folder = os.environ.get(_VARIABLE, "")
        if folder == "off":
            return None
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "batchinfer"
        try:
            return (Path(folder) if folder else base).expanduser() / f"{self._name}.json"
        except RuntimeError:
            return None  # nobody's home

    def get(self, key: str) -> dict[str, Any]:
        """Return one entry; empty where there is none."""
        return self.entries().get(key, {})

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return what is remembered and not too old. A file that is damaged is warned of, and ignored."""
        path = self.path
        if path is None:
            return {}
        try:
            found = json.loads(path.read_text())
            now = time.time()
            return {key: entry for key, entry in found.items() if self._is_usable(entry, now)}
        except OSError:
            return {}
        except (ValueError, AttributeError, RecursionError):
            sys.stderr.write(f"{path} is damaged: what earlier runs remembered there is ignored\n")
            sys.stderr.flush()
            return {}

    def put(self, key: str, entry: Mapping[str, Any]) -> bool:
        """Remember an entry beside those of others. Tells whether it could."""
        path = self.path
        if path is None:
            return False
        entries = {**self.entries(), key: {**entry, "at": time.time()}}
        newest = sorted(entries, key=lambda each: entries[each]["at"])[-_MOST_ENTRIES:]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
                written = Path(file.name)
                try:
                    json.dump({each: entries[each] for each in newest}, file)
                    file.flush()
                    written.replace(path)
                except OSError:
                    written.unlink(missing_ok=True)
                    raise
        except OSError:
            return False
        return True

    def _is_usable(self, entry: Any, now: float) -> bool:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            return now - entry["at"] < self._kept_s and self._is_sound(entry)
        return False
