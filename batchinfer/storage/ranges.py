"""Bytes of a far object that will be wanted, asked for before they are: in few requests, several at once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of a request at most. Where 50 ms pass before the first byte, and 100 MB/s come over a connection,
latency is then half of the time, and others are under way meanwhile."""

GAP_BYTES = 1024 * 1024
"""Bytes between two ranges that are fetched with them: cheaper than another request."""

BUDGET_BYTES = 32 * 1024 * 1024
"""Bytes that are fetched and not yet read, at most. One piece is always admitted."""


@dataclass(slots=True, eq=False)
class _Piece:
    """Bytes [start, stop) of an object, the `turn`-th of their range; `data` once they were asked for."""

    start: int
    stop: int
    turn: int
    data: Future[Any] | None = None


class Ranges:
    """Ranges of one object that are expected to be read, each about from its start to its end.

    `get` fetches bytes [start, stop) as a buffer, in threads of the `pool`. A piece is forgotten when its
    last byte was read; then the next ones are asked for. Safe to use from several threads.
    """

    def __init__(self, get: Callable[[int, int], Any], pool: Executor) -> None:
        self._get = get
        self._pool = pool
        self._pieces: list[_Piece] = []
        self._held = 0
        self._lock = threading.Lock()

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch some ranges; those that lie near each other together."""
        with self._lock:
            known = {piece.start for piece in self._pieces}
            self._pieces += [piece for piece in _cut(ranges) if piece.start not in known]
            self._pieces.sort(key=lambda piece: piece.start)
            self._fill()

    def read(self, start: int, stop: int) -> bytes | None:
        """Return bytes [start, stop), waiting for them; None where they were not expected."""
        with self._lock:
            pieces = self._covering(start, stop)
            if pieces is None:
                return None
            for piece in pieces:
                self._begin(piece)
        parts, at = [], start
        for piece in pieces:
            assert piece.data is not None
            data = memoryview(piece.data.result())
            parts.append(data[at - piece.start : stop - piece.start])
            at = piece.stop
        with self._lock:
            for piece in pieces:
                if stop >= piece.stop and piece in self._pieces:
                    self._pieces.remove(piece)
                    self._held -= piece.stop - piece.start
            self._fill()
        return parts[0].tobytes() if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Forget what was not read."""
        with self._lock:
            for piece in self._pieces:
                if piece.data is not None:
                    piece.data.cancel()
            self._pieces.clear()
            self._held = 0

    def _covering(self, start: int, stop: int) -> list[_Piece] | None:
        """Return the pieces that hold a range, if they all do."""
        at = bisect_right(self._pieces, start, key=lambda piece: piece.start) - 1
        found = []
        while 0 <= at < len(self._pieces) and self._pieces[at].start <= start < self._pieces[at].stop:
            found.append(self._pieces[at])
            start = self._pieces[at].stop
            if start >= stop:
                return found
            at += 1
        return None

    def _fill(self) -> None:
        """Ask for the next pieces, as many as there is room for."""
        # Columns are read side by side: the first pieces of all of them, then the second ones.
        for piece in sorted(self._pieces, key=lambda piece: (piece.turn, piece.start)):
            if piece.data is None:
                if self._held and self._held + piece.stop - piece.start > BUDGET_BYTES:
                    return
                self._begin(piece)

    def _begin(self, piece: _Piece) -> None:
        if piece.data is None:
            self._held += piece.stop - piece.start
            piece.data = self._pool.submit(self._get, piece.start, piece.stop)


def _cut(ranges: Iterable[tuple[int, int]]) -> Iterator[_Piece]:
    """Join ranges that lie near each other, and cut what is long into requests."""
    joined: list[list[int]] = []
    for start, stop in sorted(ranges):
        if joined and start - joined[-1][1] <= GAP_BYTES:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    for start, stop in joined:
        count = -(-(stop - start) // PIECE_BYTES)
        for at in range(count):
            first, last = (start + (stop - start) * edge // count for edge in (at, at + 1))
            yield _Piece(first, last, at)
