"""A worker that not even SIGKILL ends: its driver hangs. It is given up, and others do its units."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from batchinfer.data import Receipt, Shard, Unit
from batchinfer.events import Event, Warned
from batchinfer.runner import supervisor
from batchinfer.runner.memory_guard import MemoryGuard
from batchinfer.runner.messages import Assign, Channel, Done, Ready, Start, Stop
from batchinfer.runner.signals import Interrupts
from batchinfer.runner.supervisor import Supervisor

SHARD = Shard(index=0, uri="s", key="s", size_bytes=1, version="", blocks=())


class FakeWorker:
    """A worker in a thread. One that is stuck takes units and never says anything again, whatever is sent."""

    def __init__(self, *, stuck: bool) -> None:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        self.channel = Channel(up_read, down_write)
        self.output_fd: int | None = None
        self.pid = 4242
        self.can_be_killed = True
        self.kills = 0
        self._theirs = Channel(down_read, up_write)
        threading.Thread(target=self._hang if stuck else self._serve, daemon=True).start()

    def _hang(self) -> None:
        self._theirs.send(Ready(inputs=(), outputs=(), output_schema=None, settings={}, load_s=0.0))

    def _serve(self) -> None:
        self._hang()
        for message in self._messages():
            if isinstance(message, Assign):
                receipt = Receipt(
                    unit=message.unit.index,
                    parts=(),
                    rows_read=1,
                    rows_ok=1,
                    rows_error=0,
                    rows_filtered=0,
                    won=True,
                )
                self._theirs.send(Done(receipt=receipt))
            elif isinstance(message, Stop):
                self._theirs.close()
                return

    def _messages(self) -> Iterator[Any]:
        while (messages := self._theirs.receive()) is not None:
            yield from messages

    def exit_code(self, timeout: float) -> int | None:
        """Return how a healthy one ends."""
        return 0

    def drain(self, tail: Any) -> list[str]:
        """Return nothing."""
        return []

    def in_hand(self) -> list[Any]:
        """Return nothing."""
        return []

    def passed(self) -> frozenset[Any]:
        """Return nothing."""
        return frozenset()

    def own_bytes(self) -> int:
        """Return nothing."""
        return 0

    def dump(self) -> None:
        """Print nothing: its process is in the kernel."""

    def kill(self) -> None:
        """Count it; it changes nothing."""
        self.kills += 1

    def close(self) -> None:
        """Free the pipes."""
        self.channel.close()


@dataclass
class Units:
    """Ten units to do."""

    todo: list[int] = field(default_factory=lambda: list(range(10)))
    finished_: set[int] = field(default_factory=set)

    def take(self) -> Assign | None:
        """Return the next."""
        if not self.todo:
            return None
        index = self.todo.pop(0)
        return Assign(unit=Unit(index=index, shard=SHARD, start=index, stop=index + 1))

    def give_back(self, units: Iterable[Unit]) -> None:
        """Take some back."""
        self.todo += [unit.index for unit in units]

    def done(self, receipt: Receipt) -> None:
        """Note one."""
        self.finished_.add(receipt.unit)

    def finished(self) -> bool:
        """Tell whether none is left."""
        return not self.todo

    def check(self) -> None:
        """Nothing ends it from outside."""


class Quiet:
    """Surroundings in which nothing happens."""

    def __init__(self) -> None:
        self.members: list[Any] = []

    def troubles(self) -> list[Any]:
        """Return none."""
        return []

    def memory_guard(self, start: Start) -> MemoryGuard:
        """Return one that knows no limit."""
        return MemoryGuard(start.memory_bytes, 0)

    def killed(self) -> str:
        """Tell that there is enough memory."""
        return ""

    def keep_stacks(self, worker: int, lines: Iterable[str]) -> str | None:
        """Keep nothing."""


def start_of(worker: int) -> Start:
    """Describe a place."""
    return Start(
        job={},
        schema="",
        run="r",
        worker=worker,
        device=f"simulated:{worker}",
        threads=1,
        concurrency=1,
        memory_bytes=1,
        layout={},
        metadata={},
    )


def test_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """First its stacks are asked for, then it is killed, then it is no longer waited for."""
    monkeypatch.setattr(supervisor, "_DUMP_S", 0.2)
    monkeypatch.setattr(supervisor, "_LOST_S", 0.6)
    workers = [FakeWorker(stuck=True), FakeWorker(stuck=False)]
    work, events = Units(), list[Event]()
    with Interrupts() as interrupts:
        Supervisor(
            starts=[start_of(0), start_of(1)],
            spawn=lambda start: workers[start.worker],
            work=work,
            emit=events.append,
            on_ready=lambda _: None,
            interrupts=interrupts,
            grace_s=5.0,
            stall_timeout=0.3,
            surroundings=cast("Any", Quiet()),
        ).run()
    assert work.finished_ == set(range(10))
    assert workers[0].kills >= 1
    (told,) = [event.message for event in events if isinstance(event, Warned)]
    assert told == (
        "worker 0 on simulated:0 hangs in its driver and cannot be ended (pid 4242); the others go on"
    )
