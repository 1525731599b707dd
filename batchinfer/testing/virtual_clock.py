"""A clock that jumps: what takes long takes no time, and how long it would have taken is known exactly.

Threads that wait for this clock wait until every thread of the process does: then nothing else can happen
before the earliest of them is due, and the clock jumps there. So a pipeline of real threads, queues and
bounds runs on a device that takes 20 ms a batch, without its noise and without the wait.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOK_S = 0.0002
_TASKS = Path("/proc/self/task")


class VirtualClock:
    """A `Clock` whose seconds pass while all threads of this process wait. Linux only.

    While it is entered, one thread watches the others. A thread that waits for something outside of this
    process (a socket, a disk) counts as waiting: this clock is for work in memory.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, threading.Event]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="virtual-clock", daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()

    def now(self) -> float:
        """Return the seconds that would have passed."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Wait until the clock has come so far."""
        if seconds <= 0:
            return
        event = threading.Event()
        with self._lock:
            heapq.heappush(self._due, (self._now + seconds, next(self._numbers), event))
        event.wait()

    def _watch(self) -> None:
        seen: dict[str, str] | None = None
        while not self._ended.is_set():
            time.sleep(_LOOK_S)
            before, seen = seen, self._others() if self._due else None
            # Whoever waited for the interpreter's lock looked asleep, and has run since.
            if seen is None or seen != before:
                continue
            seen = None
            with self._lock:
                self._now, _, event = heapq.heappop(self._due)
            event.set()

    def _others(self) -> dict[str, str] | None:
        """Return how long each other thread has run, by its number; None where one is running."""
        own = str(threading.get_native_id())
        found: dict[str, str] = {}
        for task in _TASKS.iterdir():
            if task.name == own:
                continue
            try:
                stat = (task / "stat").read_text()
                found[task.name] = (task / "schedstat").read_text()
            except OSError:
                continue  # it has just ended
            if stat[stat.rindex(")") + 2] != "S":
                return None
        return found
