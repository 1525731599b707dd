"""A thread that does something again and again, and once more at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls `tick(last)` at once and then every `every_s` seconds, from a daemon thread of its own.

    Observers write and push from here, so that a reader who does not read and a server that does
    not answer never hold up the run.
    """

    def __init__(self, tick: Callable[[bool], None], *, every_s: float, name: str) -> None:
        self._tick = tick
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin. Calling it again changes nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Let it tick for the last time; wait for it at most so long, and say whether it is done."""
        self._stop.set()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._tick(False)
        while not self._stop.wait(self._every_s):
            self._tick(False)
        self._tick(True)
