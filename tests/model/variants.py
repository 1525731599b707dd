"""Ways of working that a store without conditional writes, or without stamps, asks for."""

from __future__ import annotations

from tests.model.protocol import Protocol
from tests.model.world import Body, Request, State, Steps, Value, Worker, moved, put


class Overwriting(Protocol):
    """Knows PUT, which replaces what is there."""

    def overwrite(
        self, state: State, i: int, slot: int, value: Value, *, yes: Worker, unclear: Worker
    ) -> Steps:
        """PUT under a name: a yes, or no answer. What was committed must not become anything else."""
        there, what = state.store[slot], f"w{i} overwrites {self.words[slot]}"
        broken = ""
        if there is not None and self.names[slot][0] in {"part", "record", "register"}:
            same = there.data == value.data if isinstance(value, Body) else there == value
            broken = "" if same else "I2 what was committed becomes something else"
        if there is None:
            what = f"w{i} writes {self.words[slot]}"
        yield i, what, moved(state, i, yes, put(state.store, slot, value), broken)
        yield from self.unanswered(state, i, Request(slot, value, there), unclear=unclear, what=what)

    def put_unit(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT what commits a unit."""
        won, look = worker._replace(at="count"), worker._replace(at="look")
        slot = self.commits[worker.plan][worker.unit]
        yield from self.overwrite(state, i, slot, self.body(i, worker), yes=won, unclear=look)


class Unconditional(Overwriting):
    """`output.commit: deterministic`: everything is PUT, and a unit's bytes are the same whoever does.

    Who of two was first cannot be told, so units are counted from the manifest and not by attempts.
    """

    def create(
        self, state: State, i: int, slot: int, value: Value, *, yes: Worker, exists: Worker, unclear: Worker
    ) -> Steps:
        """HEAD first, then PUT: in between another may do the same."""
        if state.store[slot] is None:
            after = Worker("write", *yes[1:4], (slot, value, yes, unclear))
            yield i, f"w{i} finds no {self.words[slot]}", moved(state, i, after)
        else:
            yield i, f"w{i} finds {self.words[slot]}", moved(state, i, exists)

    def replace(
        self, state: State, i: int, slot: int, value: Value, *, seen: Value, yes: Worker, unclear: Worker
    ) -> Steps:
        """PUT over what was read a moment ago."""
        _ = seen
        yield from self.overwrite(state, i, slot, value, yes=yes, unclear=unclear)

    def on_write(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT what was not there when it looked."""
        slot, value, yes, unclear = worker.memo
        yield from self.overwrite(state, i, slot, value, yes=yes, unclear=unclear)

    def on_look(self, state: State, i: int, worker: Worker) -> Steps:
        """Compare bytes: those that are there are those of the unit, whoever wrote them."""
        there = state.store[self.commits[worker.plan][worker.unit]]
        after = Worker("idle", worker.plan) if there is not None else worker._replace(at="commit")
        yield i, f"w{i} compares the bytes", moved(self.retired(state, i, worker), i, after)

    def count(self, state: State, i: int, worker: Worker) -> tuple[State, str]:
        """Count nothing."""
        _ = i, worker
        return state, ""


class WithoutStamps(Protocol):
    """A store that keeps no metadata: an attempt knows its commit by the bytes."""

    def is_mine(self, body: Body, i: int) -> bool:
        """Compare bytes instead of stamps."""
        return body.data == self.data(i)

    def count(self, state: State, i: int, worker: Worker) -> tuple[State, str]:
        """Count what has its bytes: of a dead attempt with the same ones nobody can tell it apart."""
        _ = i
        return self.tally(state, worker)
