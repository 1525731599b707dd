"""What can be done wrong with the spilled batches of a unit that is not committed yet."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.mutant import mutant
from tests.model.protocol import Protocol
from tests.model.units import DAMAGED
from tests.model.world import Body, State, Steps, Store, Worker, moved


class Credulous(Protocol):
    """Commits what it found in the spill, wrong or not: `memo` says what is wrong with it."""

    def body(self, i: int, worker: Worker) -> Body:
        """Return what is made of the spill."""
        return Body(worker.memo or self.data(i), i, worker.plan)


@mutant("I8", spill=True, crashes=1, damages=1)
class SpillUnchecked(Credulous):
    """Takes spilled batches without looking at their checksum."""

    def on_load(self, state: State, i: int, worker: Worker) -> Steps:
        """GET, and believe."""
        there = state.store[self.spills[worker.plan][worker.unit][worker.memo]]
        after = worker._replace(at="commit", memo="damaged" if there == DAMAGED else None)
        yield i, f"w{i} loads the spill", moved(state, i, after)


@mutant("I8", spill=True, crashes=1)
class SpillTwice(Credulous):
    """Takes the copies of a batch that two attempts spilled for two batches."""

    def on_resume(self, state: State, i: int, worker: Worker) -> Steps:
        """LIST, and take everything."""
        copies = [slot for slot in self.spills[worker.plan][worker.unit] if state.store[slot] is not None]
        if len(copies) > 1:
            after = worker._replace(at="commit", memo="twice")
            yield i, f"w{i} loads {len(copies)} copies", moved(state, i, after)
        else:
            yield from super().on_resume(state, i, worker)


@mutant("I7", spill=True, orders=("force",))
class SpillOfAnyPlan(Credulous):
    """Names spilled batches by their unit alone, so that another generation finds them."""

    def spill_slots(self, plan: int, unit: int) -> list[int]:
        """Return the same names for every plan."""
        _ = plan
        return super().spill_slots(0, unit)

    def on_load(self, state: State, i: int, worker: Worker) -> Steps:
        """GET, and believe."""
        there = state.store[self.spills[worker.plan][worker.unit][worker.memo]]
        after = worker._replace(at="commit", memo=None if there == worker.plan else "foreign")
        yield i, f"w{i} loads the spill", moved(state, i, after)

    def on_tidy(self, state: State, i: int, worker: Worker) -> Steps:
        """Leave the spill to gc."""
        yield i, f"w{i} leaves the spill", moved(state, i, Worker("idle", worker.plan))


@mutant("S1", spill=True)
class SpillDroppedFirst(Protocol):
    """Deletes a unit's spill when all batches are computed, before the commit."""

    def on_spill(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE, and go on to the deletion."""
        slot, go = self.spills[worker.plan][worker.unit][i], worker._replace(at="drop")
        yield from self.create(state, i, slot, worker.plan, yes=go, exists=go, unclear=go)

    def on_drop(self, state: State, i: int, worker: Worker) -> Steps:
        """DELETE, and go on to the commit."""
        yield self.delete(state, i, worker._replace(at="commit"), self.spills[worker.plan][worker.unit][i])


@mutant("S1", spill=True, sweeps=True)
class SpillSweptEarly(Protocol):
    """Lets gc delete the spill of a unit that nobody has committed yet."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield every spilled batch."""
        yield from super().victims(store)
        for units in self.spills:
            for slots in units:
                yield from slots
