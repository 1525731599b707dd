"""The loader processes of a worker: each runs the steps of one chunk at a time, and is replaced when it dies.

For the user's Python, which would hold the GIL of the thread that launches batches.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.arrow_views import values_of
from batchinfer.data import Chunk, ErrorCode
from batchinfer.engine.blame import Trust
from batchinfer.engine.steps import StepFailure, Stepped, merged
from batchinfer.errors import DeviceError, from_message
from batchinfer.frames import BrokenChannel
from batchinfer.lifeline import died_of
from batchinfer.loader.exchange import Exchange

if TYPE_CHECKING:
    from batchinfer.transient import Reason

_MODULE = "batchinfer.engine.loader_process"
_MOST_DEATHS = 32
_END_S = 5.0


class LoaderDied(Exception):
    """A loader process is gone; the text says how it ended."""


class Loaders:
    """Runs chunks through a job's steps, in `num_loaders` processes. Called from several threads at once.

    A chunk whose loader dies is tried again in a fresh one; if that one dies too, the rows that kill it
    are searched for by halves, and fail alone, with the code CRASH.
    """

    def __init__(
        self, num_loaders: int, *, on_retry: Callable[[Reason], None], on_done: Callable[[], None]
    ) -> None:
        """Start the processes, which import what they need while the model is loaded. `on_retry` hears of
        what they try again, `on_done` from time to time of rows that they have tried one by one."""
        self._all = [_Loader(on_retry, on_done) for _ in range(num_loaders)]
        self._idle: queue.SimpleQueue[_Loader] = queue.SimpleQueue()
        self._is_sound = False
        for loader in self._all:
            loader.start()
            self._idle.put(loader)

    def open(self, told: Mapping[str, Any], *, sent: list[str] | None) -> None:
        """Say what a loader is to know of the job, and which columns it gets (None: all), before the
        first chunk."""
        for loader in self._all:
            loader.told, loader.sent = told, sent

    def __call__(self, chunk: Chunk) -> Stepped:
        """Return what is left of a chunk. Raises what a step raised, and DeviceError where loaders die
        and no row is to blame."""
        with contextlib.suppress(LoaderDied):
            return self._run(chunk.rows)
        # Once is an accident: the whole chunk again, and only then by halves.
        return merged(self._pieces(chunk), chunk.rows.num_rows)

    def close(self) -> None:
        """End the processes."""
        for loader in self._all:
            loader.hang_up()
        for loader in self._all:
            loader.end()

    def _run(self, rows: pa.RecordBatch) -> Stepped:
        loader = self._idle.get()
        try:
            found = loader.run(rows, is_sound=self._is_sound or Trust.presumed)
        finally:
            self._idle.put(loader)
        self._is_sound |= len(found.good) > 0
        return found

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[int, Stepped]]:
        """Yield a chunk that killed its loader, in pieces that do not, in order, each with its first row."""
        pieces, num_deaths = [(0, chunk.rows.num_rows)], 1
        while pieces:
            start, stop = pieces.pop()
            rows = chunk.rows.slice(start, stop - start)
            try:
                yield start, self._run(rows)
                continue
            except LoaderDied as died:
                how, num_deaths = str(died), num_deaths + 1
            if stop - start == 1:
                nothing = self._run(rows.slice(0, 0))
                yield start, Stepped(nothing.rows, nothing.good, {0: _crash(how)})
            elif stop == start or num_deaths > _MOST_DEATHS:
                raise _keep_dying(chunk, start, stop, how, num_deaths)
            else:
                middle = (start + stop) // 2
                pieces += [(middle, stop), (start, middle)]


def _crash(how: str) -> StepFailure:
    message = f"the process that ran the preprocessing steps on it died ({how})"
    return StepFailure("preprocess", ErrorCode.CRASH, message, attempts=2)


def _keep_dying(chunk: Chunk, start: int, stop: int, how: str, num_deaths: int) -> DeviceError:
    numbers = chunk.numbers[start:stop].tolist()
    return DeviceError(
        f"the processes that run the preprocessing steps died {num_deaths} times, the last time of {how}",
        where=f"rows {numbers[0]}..{numbers[-1] + 1}" if numbers else None,
        hint="the log has their last words; `compute: {loaders: threads}` runs the steps in the worker",
    )


class _Loader:
    """One loader process: started when it is needed, ended when it breaks."""

    def __init__(self, on_retry: Callable[[Reason], None], on_done: Callable[[], None]) -> None:
        self._on_retry = on_retry
        self._on_done = on_done
        self.told: Mapping[str, Any] = {}
        self.sent: list[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd: int | None = None
        self._exchange: Exchange | None = None
        self._is_open = False

    def start(self) -> None:
        """Start the process. It ends with the thread that calls this: one that outlives the stages."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", _MODULE, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        # An old kernel has none: then the end of the line alone tells.
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(self._process.pid)
        self._exchange = Exchange(ours, peer=self._pidfd)

    def run(self, rows: pa.RecordBatch, *, is_sound: bool) -> Stepped:
        """Have the process run the steps; `is_sound` says that they went well on other rows. Raises
        LoaderDied, after which the next call starts another."""
        if self._exchange is None:
            self.start()
        assert self._exchange is not None
        try:
            if not self._is_open:
                self._exchange.send(self.told)
                self._hear(self._exchange)
                self._is_open = True
            self._exchange.send({"sound": is_sound}, rows if self.sent is None else rows.select(self.sent))
            note, answer = self._hear(self._exchange)
        except (BrokenChannel, OSError, LoaderDied):
            raise LoaderDied(died_of(self.end())) from None
        return _unpacked(note, answer)

    def hang_up(self) -> None:
        """End the line, upon which the process ends too."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange, self._is_open = None, False

    def end(self) -> int:
        """End the process, by force where it does not by itself. Returns its exit code."""
        self.hang_up()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        assert self._process is not None
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _hear(self, exchange: Exchange) -> tuple[dict[str, Any], pa.RecordBatch | None]:
        while (heard := exchange.receive()) is not None and heard[0].keys() & {"retry", "done"}:
            if "done" in heard[0]:
                self._on_done()
            else:
                self._on_retry(heard[0]["retry"])
        if heard is None:
            raise LoaderDied
        if "error" in heard[0]:
            raise from_message(heard[0]["error"])
        return heard


def _unpacked(note: Mapping[str, Any], answer: pa.RecordBatch | None) -> Stepped:
    assert answer is not None
    failed = {
        row: StepFailure(stage, ErrorCode(code), message, attempts)
        for row, stage, code, message, attempts in note["failed"]
    }
    *names, _ = range(answer.num_columns)
    return Stepped(answer.select(names), values_of(answer.column(answer.num_columns - 1)), failed)
