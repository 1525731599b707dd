"""A worker that measures, as its parent sees it: asked one question after the other, and ended."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Self

from batchinfer.errors import BatchinferError, from_message
from batchinfer.lifeline import died_of
from batchinfer.runner.messages import Assign, Failed, Ready, Stop, Tried, Try
from batchinfer.runner.process import LineTail, ProcessWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from batchinfer.data import Unit
    from batchinfer.runner.messages import Message, Start

_END_S = 5.0
_LAST_LINES = 8


class WorkerGoneError(BatchinferError):
    """The worker's process ended while it was measuring, which memory that is gone does."""


class TrialWorker:
    """A worker in a process of its own. It loads the model and reads the rows of some units."""

    def __init__(self, start: Start, units: Sequence[Unit], environment: dict[str, str]) -> None:
        self._worker = ProcessWorker(environment=environment)
        self._tail = LineTail()
        self._messages: list[Message] = []
        # What it prints must go somewhere, or it would wait.
        threading.Thread(target=self._overhear, args=(self._worker.output_fd,), daemon=True).start()
        self._tell(start, *(Assign(unit=unit) for unit in units), Stop(drain=True))

    def ready(self) -> Ready:
        """Wait until it has its model. Raises what loading it raised."""
        answer = self._next()
        assert isinstance(answer, Ready)
        return answer

    def begin(self, attempt: Try) -> None:
        """Let it measure."""
        self._tell(attempt)

    def result(self) -> Tried:
        """Wait for what it measured. Raises WorkerGoneError where it died, and what ended it otherwise."""
        answer = self._next()
        assert isinstance(answer, Tried)
        return answer

    def close(self) -> None:
        """End it."""
        self._worker.kill()
        self._worker.exit_code(_END_S)
        self._worker.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, *messages: Message) -> None:
        try:
            for message in messages:
                self._worker.channel.send(message)
        except BrokenPipeError:
            pass  # it is dying, and its other pipe will say so

    def _next(self) -> Message:
        """Return its next answer."""
        while True:
            while self._messages:
                message = self._messages.pop(0)
                if isinstance(message, Failed):
                    raise from_message(asdict(message))
                if isinstance(message, (Ready, Tried)):
                    return message
            found = self._worker.channel.receive()
            if found is None:
                code = self._worker.exit_code(_END_S)
                said = "\n".join(f"    {line}" for line in list(self._tail.lines)[-_LAST_LINES:])
                raise WorkerGoneError(f"the worker that measured is gone ({died_of(code or 0)})\n{said}")
            self._messages += found

    def _overhear(self, fd: int) -> None:
        import os

        with os.fdopen(fd, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                self._tail.feed(data)
