"""Run an iterator ahead in a thread, bounded in items and in bytes; and map one over threads, in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_LOOK_S = 0.1

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a stage may run ahead. One item is always admitted, however large it is."""

    items: int
    num_bytes: int


class Levels:
    """How full some queues are, by their names. Asked from any thread."""

    def __init__(self) -> None:
        self._buffers: dict[str, _Buffer[Any]] = {}

    def watch(self, name: str, buffer: _Buffer[Any]) -> None:
        """Look at a queue from now on, in place of the one that had its name."""
        self._buffers[name] = buffer

    def num_bytes(self) -> dict[str, int]:
        """Return the bytes that wait in each."""
        return {name: buffer.num_bytes for name, buffer in self._buffers.items()}


class _Buffer(Generic[T]):
    """A queue between two threads that knows how many bytes wait in it."""

    def __init__(self, bound: Bound, is_urgent: Callable[[], bool] | None) -> None:
        self._bound = bound
        self._is_urgent = is_urgent
        self._items: deque[tuple[T, int]] = deque()
        self.num_bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False

    def put(self, item: T, num_bytes: int) -> bool:
        """Add an item, waiting for room. Returns False when nobody wants it any more."""
        with self._changed:
            # What makes it urgent does not wake whoever waits here.
            look_s = None if self._is_urgent is None else _LOOK_S
            while not self._changed.wait_for(lambda: self._closed or self._has_room(num_bytes), look_s):
                pass
            if self._closed:
                return False
            self._items.append((item, num_bytes))
            self.num_bytes += num_bytes
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None) -> None:
        """Say that nothing follows; an error is raised where the next item would have been."""
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def close(self) -> None:
        """Say that nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self.num_bytes = 0
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item, num_bytes = self._items.popleft()
                self.num_bytes -= num_bytes
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def _has_room(self, num_bytes: int) -> bool:
        if not self._items or (self._is_urgent is not None and self._is_urgent()):
            return True
        return len(self._items) < self._bound.items and self.num_bytes + num_bytes <= self._bound.num_bytes


def prefetch(
    items: Iterable[T],
    *,
    bound: Bound,
    size_of: Callable[[T], int],
    name: str,
    levels: Levels | None = None,
    is_urgent: Callable[[], bool] | None = None,
) -> Generator[T, None, None]:
    """Yield `items` in order while a thread produces the next ones.

    An error in the thread is raised here, after the good items before it. Closing the generator
    ends the thread, and closes `items` in it, before it returns. The thread starts when the first item
    is asked for. `levels` know how many bytes wait. Nothing waits for room while it `is_urgent`.
    """
    ahead = _run_ahead(items, bound=bound, size_of=size_of, name=name, levels=levels, is_urgent=is_urgent)
    next(ahead)
    yield from ahead  # type: ignore[misc]


def head_start(
    items: Iterable[T], *, bound: Bound, size_of: Callable[[T], int], name: str, levels: Levels | None = None
) -> Generator[T, None, None]:
    """Like `prefetch`, and the thread starts now. The generator must be closed also if it is not used."""
    ahead = _run_ahead(items, bound=bound, size_of=size_of, name=name, levels=levels)
    next(ahead)
    return ahead  # type: ignore[return-value]


def _run_ahead(
    items: Iterable[T],
    *,
    bound: Bound,
    size_of: Callable[[T], int],
    name: str,
    levels: Levels | None,
    is_urgent: Callable[[], bool] | None = None,
) -> Generator[T | None, None, None]:
    """Yield None once the thread runs, then the items."""
    buffer: _Buffer[T] = _Buffer(bound, is_urgent)
    if levels is not None:
        levels.watch(name, buffer)

    def run() -> None:
        """Produce, in the thread."""
        error: BaseException | None = None
        try:
            for item in items:
                if not buffer.put(item, size_of(item)):
                    break
        except BaseException as raised:  # noqa: BLE001 - carried to the consumer, which raises it
            error = raised
        # Upstream ends before we say that we ended: a closed pipeline has no thread left.
        if isinstance(items, Generator):
            items.close()
        buffer.end(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield None
        yield from buffer
    finally:
        buffer.close()
        thread.join()


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, name: str, ahead: int = 1
) -> Generator[R, None, None]:
    """Yield `function(item)` for each item, in order, computed by so many threads.

    A result comes out as soon as it and those before it are ready, also while no further item comes.
    `ahead` more items than threads are taken: so many wait at their side, or are done before their turn.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        futures = _submitted(pool, function, items)
        bound = Bound(items=threads + ahead, num_bytes=1)
        submitted = prefetch(futures, bound=bound, size_of=lambda _: 0, name=f"{name}-feed")
        try:
            for future in submitted:
                yield future.result()
        finally:
            submitted.close()


def _submitted(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]
) -> Generator[Future[R], None, None]:
    try:
        for item in items:
            yield pool.submit(function, item)
    finally:
        if isinstance(items, Generator):
            items.close()
