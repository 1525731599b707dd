"""Keeps every worker two units ahead, replaces those that die, and ends them all."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchinfer.data import Receipt, Unit
from batchinfer.errors import BY_EXIT_CODE, BatchinferError, Interrupted
from batchinfer.events import (
    BatchFinished,
    Event,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
    WorkerSaid,
)
from batchinfer.runner.messages import Assign, Batches, Done, Failed, Message, Ready, Start, Stop
from batchinfer.runner.process import LineTail, Worker

if TYPE_CHECKING:
    from batchinfer.runner.signals import Interrupts

_UNITS_AHEAD = 2
_MAX_DEATHS = 3
_BACKOFF_S = (1.0, 2.0, 4.0)
_GRACE_S = 8.0


@dataclass(slots=True)
class _Member:
    """One place for a worker: the worker that is there now, and its history."""

    index: int
    start: Start
    worker: Worker
    assigned: dict[int, Unit] = field(default_factory=dict)
    tail: LineTail = field(default_factory=LineTail)
    deaths: int = 0
    ready: bool = False
    stopping: bool = False
    failure: Failed | None = None


class Supervisor:
    """Runs units on workers. One thread, one selector, no shared queue."""

    def __init__(
        self,
        *,
        starts: Sequence[Start],
        spawn: Callable[[Start], Worker],
        units: Iterable[Unit],
        emit: Callable[[Event], None],
        on_ready: Callable[[Ready], None],
        on_done: Callable[[Receipt], None],
        interrupts: Interrupts,
    ) -> None:
        self._starts = starts
        self._spawn = spawn
        self._pending = deque(units)
        self._emit = emit
        self._on_ready = on_ready
        self._on_done = on_done
        self._interrupts = interrupts
        self._selector = selectors.DefaultSelector()
        self._members: list[_Member] = []
        self._told: str | None = None

    def run(self) -> None:
        """Run every unit. Raises what ended it: a worker's error, Interrupted, or what `on_done` raises.

        However it ends, no worker is left, and what was being committed is committed.
        """
        self._selector.register(self._interrupts.fd, selectors.EVENT_READ, None)
        try:
            for start in self._starts:
                self._join(_Member(start.worker, start, self._spawn(start)))
            while self._busy():
                self._turn()
            self._end(drain=True)
        except BaseException as error:
            self._told = getattr(error, "message", None)
            self._end(drain=False)
            raise
        finally:
            self._selector.close()

    def _busy(self) -> bool:
        return bool(self._pending) or any(member.assigned or not member.ready for member in self._members)

    def _turn(self) -> None:
        """Handle what there is to hear."""
        for key, _ in self._selector.select(timeout=1.0):
            if key.data is None:
                name = self._interrupts.received.name if self._interrupts.received else "a signal"
                raise Interrupted(
                    f"stopped by {name}; what was committed is kept", hint="run the same command to resume"
                )
            member, listen = key.data
            # Another event of the same round may have been its end.
            if member in self._members:
                listen(member)

    def _join(self, member: _Member) -> None:
        """Take a fresh worker in, and tell it what to do."""
        self._members.append(member)
        worker = member.worker
        self._selector.register(worker.channel.read_fd, selectors.EVENT_READ, (member, self._hear))
        if worker.output_fd is not None:
            self._selector.register(worker.output_fd, selectors.EVENT_READ, (member, self._overhear))
        self._tell(member, member.start)

    def _tell(self, member: _Member, message: Message) -> None:
        # A broken pipe: it is dying, and its other pipe will say so.
        with contextlib.suppress(BrokenPipeError):
            member.worker.channel.send(message)

    def _feed(self, member: _Member) -> None:
        """Keep a worker two units ahead, so that it never waits for us."""
        while self._pending and len(member.assigned) < _UNITS_AHEAD + 1 and not member.stopping:
            unit = self._pending.popleft()
            member.assigned[unit.index] = unit
            self._tell(member, Assign(unit=unit))

    def _hear(self, member: _Member) -> None:
        messages = member.worker.channel.receive()
        if messages is None:
            self._bury(member)
            return
        for message in messages:
            self._take(member, message)

    def _take(self, member: _Member, message: Message) -> None:
        match message:
            case Ready():
                member.ready = True
                self._on_ready(message)
                self._emit(
                    WorkerReady(
                        worker=member.index,
                        device=member.start.device,
                        load_s=message.load_s,
                        pid=member.worker.pid,
                    )
                )
                self._feed(member)
            case Batches():
                for note in message.notes:
                    self._emit(
                        BatchFinished(
                            worker=member.index,
                            rows=note.rows,
                            compute_s=note.compute_s,
                            real_tokens=note.real_tokens,
                            padded_tokens=note.padded_tokens,
                        )
                    )
            case Done():
                member.assigned.pop(message.receipt.unit, None)
                member.deaths = 0
                self._emit(UnitCommitted(worker=member.index, receipt=message.receipt))
                self._feed(member)
                self._on_done(message.receipt)
            case Failed():
                member.failure = message
            case _:
                raise BatchinferError(f"a worker sent {type(message).__name__}, which only a parent sends")

    def _overhear(self, member: _Member) -> None:
        """Pass on what a worker prints."""
        assert member.worker.output_fd is not None
        data = os.read(member.worker.output_fd, 1 << 16)
        if not data:
            self._selector.unregister(member.worker.output_fd)
            return
        for line in member.tail.feed(data):
            self._emit(WorkerSaid(worker=member.index, line=line))

    def _bury(self, member: _Member) -> None:
        """A worker is gone: raise its error, or put another in its place."""
        self._leave(member)
        for line in member.worker.drain(member.tail):
            self._emit(WorkerSaid(worker=member.index, line=line))
        code = member.worker.exit_code(timeout=5.0)
        if code is None:
            member.worker.kill()
            code = member.worker.exit_code(timeout=5.0)
        member.worker.close()
        code = -signal.SIGKILL if code is None else code
        if member.failure is not None:
            raise rebuild(member.failure)
        restarts = not member.stopping and member.deaths + 1 < _MAX_DEATHS
        self._emit(WorkerExited(worker=member.index, code=code, restarts=restarts))
        if member.stopping:
            return
        self._pending.extendleft(reversed(member.assigned.values()))
        if not restarts:
            raise self._gave_up(member, code)
        self._replace(member, code)

    def _replace(self, member: _Member, code: int) -> None:
        wait_s = _BACKOFF_S[min(member.deaths, len(_BACKOFF_S) - 1)]
        self._emit(
            Warned(
                code="worker_died",
                message=f"worker {member.index} died ({died_of(code)}); another starts in {wait_s:.0f} s "
                "and does its units again",
            )
        )
        time.sleep(wait_s)
        heir = _Member(member.index, member.start, self._spawn(member.start), deaths=member.deaths + 1)
        self._join(heir)

    def _gave_up(self, member: _Member, code: int) -> BatchinferError:
        unit = next(iter(member.assigned.values()), None)
        said = "\n".join(f"    {line}" for line in list(member.tail.lines)[-8:])
        return BatchinferError(
            f"worker {member.index} died {_MAX_DEATHS} times without finishing a unit ({died_of(code)})"
            + (f"; it last said\n{said}" if said else ""),
            where=f"{unit.shard.uri} rows {unit.start}..{unit.stop}" if unit else None,
            hint="what was committed is kept; run the same command again once the cause is gone",
        )

    def _leave(self, member: _Member) -> None:
        self._members.remove(member)
        for fd in (member.worker.channel.read_fd, member.worker.output_fd):
            if fd is not None and fd in self._selector.get_map():
                self._selector.unregister(fd)

    def _end(self, *, drain: bool) -> None:
        """Tell every worker to stop, hear what it still has to say, and end those that do not."""
        for member in self._members:
            member.stopping = True
            self._tell(member, Stop(drain=drain))
        deadline = time.monotonic() + _GRACE_S
        while self._members and time.monotonic() < deadline:
            for key, _ in self._selector.select(timeout=0.2):
                self._listen_to_the_end(key.data)
        for member in list(self._members):
            member.worker.kill()
            self._leave(member)
            member.worker.exit_code(timeout=2.0)
            member.worker.close()

    def _listen_to_the_end(self, data: Any) -> None:
        """Hear a stopping worker; an error that it has now is not news any more."""
        if data is None:
            # Interrupted while ending: the signal's second time ends the process by itself.
            self._selector.unregister(self._interrupts.fd)
            return
        member, listen = data
        if member not in self._members:
            return
        try:
            listen(member)
        except BatchinferError as error:
            # Two workers that find the same fault in a job are one piece of news.
            if error.message != self._told:
                self._emit(Warned(code="late_error", message=error.message))


def rebuild(failure: Failed) -> BatchinferError:
    """Make the error that a worker reported into one of ours again."""
    kind = BY_EXIT_CODE.get(failure.exit_code, BatchinferError)
    error = kind(failure.message, where=failure.where, hint=failure.hint)
    error.details = failure.details
    return error


def died_of(code: int) -> str:
    """Say in a few words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
