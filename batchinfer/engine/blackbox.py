"""What a worker has in hand, in memory that outlives it: its parent reads there which rows it died on."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Stage: TypeAlias = Literal["preprocess", "model", "postprocess"]

_STAGES: tuple[Stage, ...] = get_args(Stage)
_ENTRY = struct.Struct("<qqqqqq")
_USED = struct.Struct("<q")
_SLOT = _USED.size + _ENTRY.size
_NUM_SLOTS = 1024
_PASSED_AT = _NUM_SLOTS * _SLOT
_SIZE = _PASSED_AT + len(_STAGES)


@dataclass(frozen=True, slots=True)
class Entry:
    """Positions [start, stop) of a chunk or batch of a unit, named by `key`. `row` is the number in its
    file of a row that is alone, with nothing else in hand; -1 otherwise."""

    stage: Stage
    unit: int
    key: int
    start: int
    stop: int
    row: int = -1


class BlackBox:
    """A table of entries in a memory file. One process writes, from any thread; another reads.

    It holds 1,024. What is put into a full one is not noted: a death is then told without it.
    """

    def __init__(self, fd: int) -> None:
        """Map the memory behind a descriptor, which stays the caller's."""
        self._map = mmap.mmap(fd, _SIZE)
        self._free = list(range(_NUM_SLOTS))
        self._lock = threading.Lock()

    @staticmethod
    def create() -> int:
        """Return the descriptor of an empty one; it can be passed to a child. Raises OSError where the
        system gives no such memory."""
        fd = os.memfd_create("batchinfer-blackbox")
        try:
            os.ftruncate(fd, _SIZE)
        except OSError:
            os.close(fd)
            raise
        return fd

    def put(self, entry: Entry) -> int:
        """Note an entry, before its rows are touched. Returns its place, -1 where it has none."""
        with self._lock:
            if not self._free:
                return -1
            slot = self._free.pop()
        row = (_STAGES.index(entry.stage), entry.unit, entry.key, entry.start, entry.stop, entry.row)
        _ENTRY.pack_into(self._map, slot * _SLOT + _USED.size, *row)
        # Last, so that what is read is whole.
        _USED.pack_into(self._map, slot * _SLOT, 1)
        return slot

    def clear(self, slot: int) -> None:
        """Forget the entry at a place: its rows are done, and their stage has shown that it can do some."""
        if slot < 0:
            return
        stage, _, _, start, stop, _ = _ENTRY.unpack_from(self._map, slot * _SLOT + _USED.size)
        if start < stop:
            self._map[_PASSED_AT + stage] = 1
        _USED.pack_into(self._map, slot * _SLOT, 0)
        with self._lock:
            self._free.append(slot)

    def read(self) -> list[Entry]:
        """Return what is noted."""
        found = []
        for slot in range(_NUM_SLOTS):
            if _USED.unpack_from(self._map, slot * _SLOT)[0]:
                stage, *numbers = _ENTRY.unpack_from(self._map, slot * _SLOT + _USED.size)
                found.append(Entry(_STAGES[stage], *numbers))
        return found

    def passed(self) -> frozenset[Stage]:
        """Return the stages that have done some rows."""
        return frozenset(stage for at, stage in enumerate(_STAGES) if self._map[_PASSED_AT + at])

    def close(self) -> None:
        """Unmap the memory."""
        self._map.close()
