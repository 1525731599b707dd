"""Those who listen to a run, told of its end whatever ended it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from batchinfer.errors import BatchinferError, ExitCode
from batchinfer.events import Event, RunFailed, RunFinished, RunStarted
from batchinfer.runner.facts import told
from batchinfer.runner.retry import NothingToRetry

if TYPE_CHECKING:
    from batchinfer.protocols import Observer


class Audience:
    """The observers of one run, which is called `run`. While entered, they hear its events; an error that
    passes is told first (RunFailed, and RunFinished where the run had begun), and then they are closed.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.run = secrets.token_hex(4)
        self.began = time.monotonic()
        self._observers = observers
        self._has_begun = self._is_over = False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def emit(self, event: Event) -> None:
        """Tell every observer."""
        self._has_begun |= isinstance(event, RunStarted)
        self._is_over |= isinstance(event, RunFinished)
        for observer in self._observers:
            observer.on_event(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # That there is nothing to do is no failure.
            if error is not None and not self._is_over and not isinstance(error, NothingToRetry):
                self._fail(error)
        finally:
            for observer in self._observers:
                observer.close()

    def _fail(self, error: BaseException) -> None:
        seconds = self.seconds
        self.emit(RunFailed.of(error, run=self.run, seconds=seconds))
        # A run that never began has no end to tell of: the error says it all.
        if self._has_begun:
            code = error.exit_code if isinstance(error, BatchinferError) else ExitCode.CRASH
            self.emit(RunFinished(exit_code=code, seconds=seconds, complete=False, error=told(error)))
