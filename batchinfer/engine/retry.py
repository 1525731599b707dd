"""Another attempt at what failed for a reason that may pass: a busy service, a connection that broke."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from batchinfer.clock import Clock, SystemClock
from batchinfer.data import ErrorCode
from batchinfer.errors import BatchinferError, Interrupted
from batchinfer.transient import reason_of

if TYPE_CHECKING:
    from batchinfer.config.nested import RetryOptions
    from batchinfer.transient import Reason

T = TypeVar("T")

_FIRST_S = 0.5
_LONGEST_S = 30.0
_SLICE_S = 0.1


_CODES = {
    "timeout": ErrorCode.TIMEOUT,
    "connection": ErrorCode.ENDPOINT,
    "throttled": ErrorCode.ENDPOINT,
    "server": ErrorCode.ENDPOINT,
}


def passing_code(error: BatchinferError) -> ErrorCode | None:
    """Return the code of a row that failed for a passing reason once too often; None for any other."""
    return _CODES.get(reason_of(error) or "")


class Retry:
    """Tries again, after waits that double and are drawn anew each time, from nothing up to 30 s: whoever
    failed together does not come back together. Safe to use from several threads.

    `halt`, when set, ends the waiting, and with it the run. `on_retry` hears why a call is tried again,
    `on_attempt` of every attempt at some of the rows that failed together.
    """

    def __init__(
        self,
        options: RetryOptions,
        *,
        halt: threading.Event | None = None,
        on_retry: Callable[[Reason], None] = lambda _: None,
        on_attempt: Callable[[], None] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._options = options
        self._halt = halt or threading.Event()
        self._on_retry = on_retry
        self.on_attempt = on_attempt
        self._clock = clock or SystemClock()
        # Not reproducible, on purpose.
        self._random = random.Random()  # noqa: S311 - no secret

    def again(self, error: BatchinferError, attempt: Callable[[], T]) -> T:
        """Make another attempt at what failed with `error`, and more where that fails too. Raises the last
        error, which then says how many attempts there were; Interrupted where the run was stopped."""
        done: Counter[str] = Counter()
        while True:
            reason = reason_of(error)
            kind = "timeout" if reason == "timeout" else "transient"
            if reason is None or done[kind] >= getattr(self._options, kind):
                error.attempts = done.total() + 1
                raise error
            self._wait(min(_FIRST_S * 2.0 ** done.total(), _LONGEST_S))
            done[kind] += 1
            self._on_retry(reason)
            try:
                return attempt()
            except BatchinferError as failed:
                error = failed

    def _wait(self, most_s: float) -> None:
        until = self._clock.now() + self._random.uniform(0.0, most_s)
        while (left_s := until - self._clock.now()) > 0:
            if self._halt.is_set():
                raise Interrupted("stopped while waiting to try again")
            self._clock.sleep(min(left_s, _SLICE_S))
