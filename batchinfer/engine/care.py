"""Care with rows that a worker died on: they are noted before they are touched, and the suspects among them
are tried in small pieces, in the end one by one, with nothing else in hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from batchinfer.arrow_views import values_of
from batchinfer.engine.blackbox import BlackBox, Entry, Stage

if TYPE_CHECKING:
    from batchinfer.data import HostBatch, Poison, Suspect

_ONE_BY_ONE = 256


class Care:
    """Notes what is in hand, and knows which rows need care. Safe to use from several threads.

    Work that needs care waits until nothing else is in hand, and what else there is to do waits for it: so
    a death tells who caused it. Whoever holds rows must therefore come to an end while somebody waits.
    """

    def __init__(self, box: BlackBox | None) -> None:
        self._box = box
        self._suspects: dict[int, tuple[Suspect, ...]] = {}
        self._poison: dict[int, Mapping[int, Poison]] = {}
        self._in_hand = 0
        self._changed = threading.Condition()
        self._alone = False
        self._has_died = False
        self._num_waiting = 0
        self.on_done: Callable[[], None] = lambda: None
        """Hears whenever some rows are done, in pieces of batches too: that is progress."""

    def tell(self, unit: int, suspects: Sequence[Suspect], poison: Sequence[Poison]) -> None:
        """Say what earlier deaths have shown of a unit, before it is read."""
        self._suspects[unit] = tuple(suspects)
        self._poison[unit] = {one.row: one for one in poison}

    def some_done(self) -> None:
        """Say that some rows are done."""
        self.on_done()

    def is_awaited(self) -> bool:
        """Tell whether somebody waits for all rows that are in hand."""
        return self._num_waiting > 0

    def poison(self, unit: int, stages: Collection[str]) -> Mapping[int, Poison]:
        """Return the rows that kill whoever touches them in some stages, by their number in the file."""
        known = self._poison.get(unit, {})
        return {row: one for row, one in known.items() if one.stage in stages} if known else known

    def cuts(self, stage: Stage, unit: int, key: int, num_rows: int) -> list[tuple[int, int, bool]]:
        """Return the pieces in which to do some rows, and whether each needs care."""
        found = [one for one in self._suspects.get(unit, ()) if (one.stage, one.key) == (stage, key)]
        if not found:
            return [(0, num_rows, False)]
        start = min(one.start for one in found)
        stop = min(max(one.stop for one in found), num_rows)
        size = 1 if stop - start <= _ONE_BY_ONE else math.isqrt(stop - start)
        pieces = [(at, min(at + size, stop), True) for at in range(start, stop, size)]
        around = [(0, start, False), *pieces, (stop, num_rows, False)]
        return [piece for piece in around if piece[0] < piece[1]]

    def take(self, entry: Entry) -> int:
        """Note rows that are taken in hand. Returns what `release` wants."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._num_waiting)
            self._in_hand += 1
        return self._note(entry)

    def release(self, slot: int, *, is_dead: bool = False, alone: bool = False) -> None:
        """Note that they are done; or that whoever had them in hand is dead: then they stay noted, and what
        others take from now on is not: it is not to blame."""
        if self._box is not None and not is_dead:
            # Before others may take theirs: what was alone must stand alone in the box.
            self._box.clear(slot)
        with self._changed:
            self._has_died |= is_dead
            self._alone &= not alone
            self._in_hand -= 1
            self._changed.notify_all()
        if not is_dead:
            self.some_done()

    @contextmanager
    def holding(self, entry: Entry, *, alone: bool) -> Iterator[None]:
        """Have rows in hand; `alone`: and nothing else. An error that passes is a death."""
        slot = self._take_alone(entry) if alone else self.take(entry)
        is_dead = True
        try:
            yield
            is_dead = False
        finally:
            self.release(slot, is_dead=is_dead, alone=alone)

    def _take_alone(self, entry: Entry) -> int:
        with self._changed:
            self._num_waiting += 1
            self._changed.wait_for(lambda: not self._in_hand)
            self._num_waiting -= 1
            self._alone = True
            self._in_hand += 1
        return self._note(entry)

    def _note(self, entry: Entry) -> int:
        return -1 if self._box is None or self._has_died else self._box.put(entry)


def key_of(batch: HostBatch) -> int:
    """Name a batch of a unit by its first row, which no other batch has: the same in every attempt."""
    return batch.window.span.start + int(batch.rows[0])


def entry_of(stage: Stage, batch: HostBatch, start: int, stop: int, *, alone: bool = False) -> Entry:
    """Describe rows [start, stop) of a batch."""
    row = int(numbers_of(batch, start, stop)[0]) if alone and stop - start == 1 else -1
    return Entry(stage, batch.window.span.unit.index, key_of(batch), start, stop, row)


def numbers_of(batch: HostBatch, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Return the numbers in their file of rows [start, stop) of a batch, int64."""
    assert batch.window.carried is not None
    numbers = values_of(batch.window.carried["#row"])
    return np.asarray(numbers[batch.rows[start:stop]])
