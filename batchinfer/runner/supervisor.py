"""Keeps every worker two units ahead, replaces those that die or hang, and ends them all."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from batchinfer.data import ErrorCode, Receipt, Unit
from batchinfer.errors import BatchinferError, DeviceError
from batchinfer.events import (
    BatchFinished,
    EfficiencyMeasured,
    Event,
    StagesTimed,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
    WorkerSaid,
)
from batchinfer.runner.endings import ending, quoted, standing
from batchinfer.runner.inquest import Inquest
from batchinfer.runner.member import Member, Vacancy
from batchinfer.runner.messages import (
    Assign,
    Batches,
    Computed,
    Done,
    Failed,
    Measured,
    Message,
    Ready,
    Start,
    Stop,
)
from batchinfer.runner.process import Worker
from batchinfer.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from batchinfer.runner.signals import Interrupts

_MAX_DEATHS = 3
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_DUMP_S = 5.0
_MEASURING_S = 600.0
_LOST_S = 30.0
_LAST_LINES = 8


class Work(Protocol):
    """Where the supervisor gets units from. No method waits."""

    def take(self) -> Assign | None:
        """Return a unit to do; None where there is none at this moment."""
        ...

    def give_back(self, units: Iterable[Unit]) -> None:
        """Take back what a worker did not finish."""
        ...

    def done(self, receipt: Receipt) -> None:
        """Note a committed unit. Raises BudgetExceeded and the like."""
        ...

    def finished(self) -> bool:
        """Tell whether nothing is left to hand out."""
        ...

    def check(self) -> None:
        """Raise what ended the work from outside."""
        ...


class Supervisor:
    """Runs units on workers. One thread, one selector, no shared queue."""

    def __init__(
        self,
        *,
        starts: Sequence[Start],
        spawn: Callable[[Start], Worker],
        work: Work,
        emit: Callable[[Event], None],
        on_ready: Callable[[Ready], None],
        interrupts: Interrupts,
        grace_s: float,
        stall_timeout: float | None,
    ) -> None:
        self._starts = starts
        self._spawn = spawn
        self._work = work
        self._emit = emit
        self._on_ready = on_ready
        self._interrupts = interrupts
        self._grace_s = grace_s
        self._stall_timeout = stall_timeout
        self._selector = selectors.DefaultSelector()
        self._members: list[Member] = []
        self._vacancies: list[Vacancy] = []
        self._inquest = Inquest()
        self._told: str | None = None
        self._sound = False

    def run(self) -> None:
        """Run every unit. Raises what ended it: a worker's error, Interrupted, or what `work` raises.

        However it ends, no worker is left, and what was being committed is committed.
        """
        self._selector.register(self._interrupts.fd, selectors.EVENT_READ, None)
        try:
            for start in self._starts:
                self._join(start.worker, start, deaths=0)
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
        if not self._work.finished() or any(member.assigned for member in self._members):
            return True
        # Nothing left: whoever is still loading its model need not, once one has shown the job sound.
        return not self._sound

    def _turn(self) -> None:
        """Handle what there is to hear, and what is due."""
        idle = any(member.ready and not member.assigned for member in self._members)
        for key, _ in self._selector.select(timeout=0.1 if idle or self._vacancies else 1.0):
            if key.data is None:
                raise self._interrupts.stopped()
            member, listen = key.data
            # Another event of the same round may have been its end.
            if member in self._members:
                listen(member)
        self._work.check()
        now = time.monotonic()
        for vacancy in [vacancy for vacancy in self._vacancies if vacancy.due <= now]:
            self._vacancies.remove(vacancy)
            self._join(vacancy.index, vacancy.start, deaths=vacancy.deaths)
        for member in list(self._members):
            self._feed(member)
            self._guard(member, now)

    def _join(self, index: int, start: Start, *, deaths: int) -> None:
        """Start a worker, take it in, and tell it what to do."""
        worker = self._spawn(start)
        watchdog = Watchdog(self._stall_timeout, now=time.monotonic())
        member = Member(index, start, worker, watchdog, deaths)
        self._members.append(member)
        self._selector.register(worker.channel.read_fd, selectors.EVENT_READ, (member, self._hear))
        if worker.output_fd is not None:
            self._selector.register(worker.output_fd, selectors.EVENT_READ, (member, self._overhear))
        self._tell(member, start)
        self._feed(member)

    def _tell(self, member: Member, message: Message) -> None:
        # A broken pipe: it is dying, and its other pipe will say so.
        with contextlib.suppress(BrokenPipeError):
            member.worker.channel.send(message)

    def _feed(self, member: Member) -> None:
        """Keep a worker two units ahead, and about a second, so that it never waits for us."""
        most = member.units_at_once(time.monotonic())
        while not member.stopping and member.num_to_compute < most:
            assign = self._work.take()
            if assign is None:
                return
            if member.ready and not member.assigned:
                member.watchdog.progress(time.monotonic())
            member.assigned[assign.unit.index] = assign.unit
            self._tell(member, self._inquest.brief(assign))

    def _guard(self, member: Member, now: float) -> None:
        """End a worker that makes no progress: first with a dump of its stacks, then at once."""
        if member.stalled_at is None:
            waits = member.ready and not member.assigned
            if not waits and not member.stopping and member.watchdog.is_stalled(now):
                member.stalled_at = now
                member.worker.dump()
        elif not member.killed and now - member.stalled_at > _DUMP_S:
            member.killed = True
            member.worker.kill()
        elif now - member.stalled_at > _LOST_S:
            self._lose(member)

    def _lose(self, member: Member) -> None:
        """Give up a worker that not even SIGKILL ends: its driver hangs, and its device with it."""
        self._leave(member)
        self._work.give_back(member.assigned.values())
        self._emit(WorkerExited(worker=member.index, code=-signal.SIGKILL, restarts=False))
        self._close_place(member, f"hangs in its driver and cannot be ended (pid {member.worker.pid})")

    def _hear(self, member: Member) -> None:
        messages = member.worker.channel.receive()
        if messages is None:
            self._bury(member)
            return
        first: BatchinferError | None = None
        for message in messages:
            try:
                self._take(member, message)
            except BatchinferError as error:
                # What came with it is heard as well: a unit that is committed counts.
                first = first or error
        if first is not None:
            raise first

    def _take(self, member: Member, message: Message) -> None:
        now = time.monotonic()
        match message:
            case Ready():
                member.ready = self._sound = True
                member.ready_at = now
                member.watchdog.progress(now)
                self._on_ready(message)
                self._emit(
                    WorkerReady(
                        worker=member.index,
                        device=member.start.device,
                        load_s=message.load_s,
                        pid=member.worker.pid,
                        lanes=message.lanes,
                        settings=message.settings,
                    )
                )
            case Batches():
                member.watchdog.progress(now)
                for note in message.notes:
                    member.watchdog.batch(note.compute_s)
                    self._emit(
                        BatchFinished(
                            worker=member.index,
                            rows=note.rows,
                            compute_s=note.compute_s,
                            real_tokens=note.real_tokens,
                            padded_tokens=note.padded_tokens,
                        )
                    )
                self._emit(
                    StagesTimed(worker=member.index, seconds=message.stages, peak_bytes=message.peak_bytes)
                )
            case Measured():
                self._emit(
                    EfficiencyMeasured(
                        worker=member.index,
                        rows=message.rows,
                        seconds=message.seconds,
                        model_s=message.model_s,
                    )
                )
            case Computed():
                member.watchdog.progress(now)
                member.computed.add(message.unit)
            case Done():
                member.watchdog.progress(now)
                member.assigned.pop(message.receipt.unit, None)
                member.computed.discard(message.receipt.unit)
                member.deaths = 0
                member.committed += 1
                self._inquest.close(message.receipt.unit)
                self._emit(UnitCommitted(worker=member.index, receipt=message.receipt))
                self._work.done(message.receipt)
            case Failed():
                member.failure = message
            case _:
                raise BatchinferError(f"a worker sent {type(message).__name__}, which only a parent sends")
        self._feed(member)

    def _overhear(self, member: Member) -> None:
        """Pass on what a worker prints."""
        assert member.worker.output_fd is not None
        data = os.read(member.worker.output_fd, 1 << 16)
        if not data:
            self._selector.unregister(member.worker.output_fd)
            return
        for line in member.tail.feed(data):
            self._emit(WorkerSaid(worker=member.index, line=line))

    def _bury(self, member: Member) -> None:
        """A worker is gone: raise its error, or have another take its place."""
        self._leave(member)
        for line in member.worker.drain(member.tail):
            self._emit(WorkerSaid(worker=member.index, line=line))
        code = member.worker.exit_code(timeout=5.0)
        if code is None:
            member.worker.kill()
            code = member.worker.exit_code(timeout=5.0)
        member.in_hand = member.worker.in_hand()
        member.worker.close()
        code = -signal.SIGKILL if code is None else code
        stalled_s = member.watchdog.silent_s(time.monotonic()) if member.stalled_at is not None else None
        how, cause = ending(code, member.failure, stalled_s, has_begun=member.ready)
        if not member.stopping and self._inquire(member, how, cause):
            # The next one knows more: not one of several deaths in vain.
            member.deaths = -1
        restarts = not member.stopping and member.deaths + 1 < _MAX_DEATHS
        self._emit(WorkerExited(worker=member.index, code=code, restarts=restarts))
        if member.stopping:
            return
        unit = next(iter(member.assigned.values()), None)
        self._work.give_back(member.assigned.values())
        if not restarts:
            self._close_place(member, f"{how} {_MAX_DEATHS} times without finishing a unit", unit)
            return
        self._replace(member, how)

    def _inquire(self, member: Member, how: str, cause: ErrorCode) -> bool:
        """Ask what a dead worker had in hand; tell whether that helps the next one."""
        told = self._inquest.hear(member.in_hand, member.assigned, how=how, code=cause)
        for message in told or ():
            self._emit(Warned(code="poison", message=message))
        return told is not None

    def _replace(self, member: Member, how: str) -> None:
        wait_s = min(_FIRST_BACKOFF_S * 2.0 ** max(member.deaths, 0), _LONGEST_BACKOFF_S)
        stack = ""
        if member.stalled_at is not None:
            stack = "\n  it stood at:\n" + quoted(standing(member.tail.lines))
        self._emit(
            Warned(
                code="stalled" if stack else "worker_died",
                message=f"worker {member.index} {how}; another starts in {wait_s:g} s "
                f"and does its units again{stack}",
            )
        )
        due = time.monotonic() + wait_s
        self._vacancies.append(Vacancy(member.index, member.start, member.deaths + 1, due))

    def _close_place(self, member: Member, how: str, unit: Unit | None = None) -> None:
        """Start no worker there any more. Raises DeviceError where no place is left."""
        said = quoted(list(member.tail.lines)[-_LAST_LINES:])
        told = f"worker {member.index} on {member.start.device} {how}"
        if self._members or self._vacancies:
            self._emit(Warned(code="device_given_up", message=f"{told}; the others go on"))
            return
        raise DeviceError(
            told + (f"; it last said\n{said}" if said else ""),
            where=f"{unit.shard.uri} rows {unit.start}..{unit.stop}" if unit else None,
            hint="what was committed is kept; run the same command again once the cause is gone",
        )

    def _leave(self, member: Member) -> None:
        self._members.remove(member)
        for fd in (member.worker.channel.read_fd, member.worker.output_fd):
            if fd is not None and fd in self._selector.get_map():
                self._selector.unregister(fd)

    def _end(self, *, drain: bool) -> None:
        """Tell every worker to stop, hear what it still has to say, and end those that do not."""
        for member in self._members:
            member.stopping = True
            self._tell(member, Stop(drain=drain))
        grace_s = self._grace_s
        if drain and any(member.start.measure for member in self._members):
            grace_s += _MEASURING_S
        deadline = time.monotonic() + grace_s
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
