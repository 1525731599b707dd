"""Has a worker stopped making progress? Judged by the batches that it finishes, by nothing it says."""

from __future__ import annotations

from collections import deque

_AUTO_S = 360.0
_LOADING_S = 900.0
_SLOW_BATCHES = 10
_REMEMBERED = 512


class Watchdog:
    """One worker's deadline. Times are seconds of one monotonic clock.

    `stall_timeout` None stands for longer than a store may keep a worker waiting.
    """

    def __init__(self, stall_timeout: float | None, *, now: float) -> None:
        self._stall_s = stall_timeout if stall_timeout is not None else _AUTO_S
        self._progress_at = now
        self._batches: deque[float] = deque(maxlen=_REMEMBERED)
        self._loading = True

    def progress(self, now: float) -> None:
        """Note that something was finished: a batch, a unit, the loading of the model."""
        self._progress_at = now
        self._loading = False

    def batch(self, seconds: float) -> None:
        """Note how long a batch took."""
        self._batches.append(seconds)

    @property
    def limit_s(self) -> float:
        """How long this worker may show nothing."""
        if self._loading:
            return max(_LOADING_S, self._stall_s)
        slow_s = sorted(self._batches)[int(0.99 * len(self._batches))] if self._batches else 0.0
        return max(self._stall_s, _SLOW_BATCHES * slow_s)

    def silent_s(self, now: float) -> float:
        """How long it has shown nothing."""
        return now - self._progress_at

    def is_stalled(self, now: float) -> bool:
        """Tell whether it has shown nothing for too long."""
        # The limit sorts batches: asked only of those that are late by the simple measure.
        return self.silent_s(now) > self._stall_s and self.silent_s(now) > self.limit_s
