"""Keeps every worker two units ahead, replaces those that die or hang, and ends them all."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.errors import BatchinferError, BudgetExceeded, DeviceError
from batchinfer.events import Event, Warned, WorkerExited, WorkerSaid
from batchinfer.runner.court import Court, first_unit
from batchinfer.runner.endings import quoted, standing
from batchinfer.runner.member import Member, Vacancy
from batchinfer.runner.messages import (
    Assign,
    Batches,
    Computed,
    Done,
    Failed,
    Measured,
    Message,
    Publish,
    Ready,
    Start,
    Stop,
)
from batchinfer.runner.process import Worker, end_of
from batchinfer.runner.retelling import events_of
from batchinfer.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from batchinfer.data import Unit
    from batchinfer.runner.signals import Interrupts
    from batchinfer.runner.surroundings import Surroundings
    from batchinfer.runner.work import Work

_MAX_DEATHS = 3
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_DUMP_S = 5.0
_MEASURING_S = 600.0
_LOST_S = 30.0
_LAST_LINES = 8
_GO_ON = "what was committed is kept; run the same command again once the cause is gone"


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
        surroundings: Surroundings,
    ) -> None:
        self._starts = starts
        self._spawn = spawn
        self._work = work
        self._emit = emit
        self._on_ready = on_ready
        self._interrupts = interrupts
        self._grace_s = grace_s
        self._stall_timeout = stall_timeout
        self._surroundings = surroundings
        self._court = Court(start.device for start in starts)
        self._selector = selectors.DefaultSelector()
        self._members = surroundings.members
        self._vacancies: list[Vacancy] = []
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
        for trouble in self._surroundings.troubles():
            if not trouble.is_fatal:
                self._emit(Warned(code="device_health", message=f"{trouble.device} {trouble.what}"))
            elif not self._court.circuits.is_open(trouble.device):
                self._leave_alone(trouble.device, trouble.what)
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
        member = Member(index, start, worker, watchdog, self._surroundings.memory_guard(start), deaths)
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
        while not member.is_leaving and member.num_to_compute < most:
            assign = self._work.take()
            if assign is None:
                return
            self._assign(member, assign)

    def _assign(self, member: Member, assign: Assign) -> None:
        if member.ready and not member.assigned:
            member.watchdog.progress(time.monotonic())
        member.assigned[assign.unit.index] = assign.unit
        self._tell(member, self._court.brief(assign))

    def _guard(self, member: Member, now: float) -> None:
        """End a worker that makes no progress: first with a dump of its stacks, then at once."""
        if member.stalled_at is None:
            waits = member.ready and not member.assigned
            if not waits and not member.stopping and member.watchdog.is_stalled(now):
                member.stalled_at = now
                member.tail.keep_more()
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
        for event in events_of(member, message):
            self._emit(event)
        match message:
            case Ready():
                member.ready = self._sound = True
                member.ready_at = now
                member.watchdog.progress(now)
                member.guard.loaded(member.worker.own_bytes())
                self._on_ready(message)
                self._tell(member, Publish())
            case Batches():
                member.watchdog.progress(now)
                for note in message.notes:
                    member.watchdog.batch(note.compute_s)
                self._court.computed(len(message.notes))
            case Measured():
                pass
            case Computed():
                member.watchdog.progress(now)
                member.computed.add(message.unit)
            case Done():
                member.watchdog.progress(now)
                member.assigned.pop(message.receipt.unit, None)
                member.computed.discard(message.receipt.unit)
                member.deaths = 0
                member.committed += 1
                self._work.done(message.receipt)
                for device, why in self._court.done(message.receipt.unit, member.start.device):
                    self._leave_alone(device, why)
                self._retire(member)
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
        code = end_of(member.worker)
        if code == -signal.SIGKILL and not (member.killed or member.no_memory):
            member.no_memory = self._surroundings.killed()
        member.in_hand, member.passed = member.worker.in_hand(), member.worker.passed()
        member.worker.close()
        device = member.start.device
        restarts = not self._court.circuits.is_open(device)
        if not restarts or (member.retiring and not member.stopping and code == 0):
            self._emit(WorkerExited(worker=member.index, code=code, restarts=restarts))
            self._work.give_back(member.assigned.values())
            if restarts:
                self._join(member.index, member.start, deaths=member.deaths)
            return
        verdict = self._court.death(member, code)
        for message in verdict.found.said:
            self._emit(Warned(code="poison", message=message))
        if verdict.found.is_told:
            # The next one knows more: not one of several deaths in vain.
            member.deaths = -1
        restarts = not member.stopping and verdict.distrust is None and member.deaths + 1 < _MAX_DEATHS
        self._emit(WorkerExited(worker=member.index, code=code, restarts=restarts))
        if member.stopping:
            return
        elsewhere = verdict.found.elsewhere
        self._work.give_back([unit for unit in member.assigned.values() if unit not in elsewhere])
        if verdict.distrust is not None:
            self._leave_alone(device, f"{verdict.distrust}: worker {member.index} {verdict.how}")
        elif not restarts:
            self._close_place(member, f"{verdict.how} {_MAX_DEATHS} times without finishing a unit")
        else:
            self._replace(member, verdict.how)
        self._hand_over(elsewhere, device)

    def _hand_over(self, units: Sequence[Unit], device: str) -> None:
        """Give units to a worker on another device than the one that failed on them."""
        trusted = {other for other in self._at_work() - {device} if not self._court.circuits.is_open(other)}
        others = [one for one in self._members if one.start.device in trusted and not one.is_leaving]
        if not others:
            self._work.give_back(units)
            return
        for unit in units:
            least = min(others, key=lambda member: len(member.assigned))
            self._assign(least, Assign(unit=unit, spilled=True))

    def _leave_alone(self, device: str, why: str) -> None:
        """Trust a device no more: its workers end, and others do their units. Raises DeviceError where there
        is no other device."""
        self._court.circuits.open(device)
        self._vacancies = [vacancy for vacancy in self._vacancies if vacancy.start.device != device]
        for member in self._members:
            if member.start.device == device:
                member.stalled_at, member.killed = time.monotonic(), True
                member.worker.kill()
        if self._has_places():
            message = f"{device} {why}; it is left alone, and the others do its units"
            self._emit(Warned(code="device_quarantined", message=message))
            return
        raise DeviceError(f"{device} {why}, and no other device is left", hint=_GO_ON)

    def _retire(self, member: Member) -> None:
        """Have a worker whose memory grows beyond its share finish what it has, and another follow it."""
        if member.retiring or member.stopping or not member.may_measure(time.monotonic()):
            return
        why = member.guard.excess(member.worker.own_bytes())
        if why is not None:
            member.retiring = True
            self._tell(member, Stop(drain=True))
            message = f"worker {member.index} {why}; another takes its place once its units are done"
            self._emit(Warned(code="memory_guard", message=message))

    def _replace(self, member: Member, how: str) -> None:
        wait_s = min(_FIRST_BACKOFF_S * 2.0 ** max(member.deaths, 0), _LONGEST_BACKOFF_S)
        stack = ""
        if member.stalled_at is not None:
            kept = self._surroundings.keep_stacks(member.index, member.tail.lines)
            stack = "\n  it stood at:\n" + quoted(standing(member.tail.lines))
            stack += f"\n  all its stacks: {kept}" if kept else ""
        self._emit(
            Warned(
                code="stalled" if stack else "worker_died",
                message=f"worker {member.index} {how}; another starts in {wait_s:g} s "
                f"and does its units again{stack}",
            )
        )
        due = time.monotonic() + wait_s
        self._vacancies.append(Vacancy(member.index, member.start, member.deaths + 1, due))

    def _at_work(self) -> set[str]:
        return {one.start.device for some in (self._members, self._vacancies) for one in some}

    def _has_places(self) -> bool:
        return not all(map(self._court.circuits.is_open, self._at_work()))

    def _close_place(self, member: Member, how: str) -> None:
        """Start no worker there any more. Raises DeviceError where no place is left."""
        said, unit = quoted(list(member.tail.lines)[-_LAST_LINES:]), first_unit(member)
        device = member.start.device
        if device not in self._at_work():
            self._court.circuits.open(device)
        told = f"worker {member.index} on {device} {how}"
        if self._has_places():
            self._emit(Warned(code="device_given_up", message=f"{told}; the others go on"))
            return
        raise DeviceError(
            told + (f"; it last said\n{said}" if said else ""),
            where=f"{unit.shard.uri} rows {unit.start}..{unit.stop}" if unit else None,
            hint=_GO_ON,
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
            # Two workers that find the same fault, or more rows than a budget allows, are one piece of news.
            if error.message != self._told and not isinstance(error, BudgetExceeded):
                self._emit(Warned(code="late_error", message=error.message))
