"""SIGINT and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from batchinfer.errors import BatchinferError, Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, counts requests to stop; `fd` becomes readable at the first one.

    Until somebody watches `fd` (`watched`), the first one raises Interrupted where the main thread is.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._watched = False
        self._previous: dict[signal.Signals, Any] = {}
        self.fd, self._write_fd = os.pipe()

    def __enter__(self) -> Self:
        # Python delivers signals to its main thread only: elsewhere, they are the caller's.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.fd)
        os.close(self._write_fd)
        if self.received and isinstance(error, Exception) and not isinstance(error, BatchinferError):
            # A library that was interrupted in the middle reports a fault of its own.
            raise self.stopped() from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave it to who enters to watch `fd` and to come to an orderly end."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False

    def stopped(self) -> Interrupted:
        """Return the error for a run that was asked to stop."""
        name = self.received.name if self.received else "a signal"
        return Interrupted(
            f"stopped by {name}; what was committed is kept", hint="run the same command to resume"
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the system's call
        if self.received is not None:
            # Asked twice: die of it. The workers die with us, and nothing half-written is visible.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        os.write(self._write_fd, b"!")
        if not self._watched:
            raise self.stopped()
