"""What can be done wrong when a unit is committed."""

from __future__ import annotations

from typing import ClassVar

from tests.model.mutant import mutant
from tests.model.protocol import Protocol
from tests.model.variants import Overwriting, Unconditional, WithoutStamps
from tests.model.world import Body, State, Steps, Worker, moved


@mutant("I2")
class ExistsThenPut(Overwriting):
    """Asks whether the part exists, and then writes it unconditionally."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """HEAD."""
        there = self.is_done(state.store, worker.plan, worker.unit)
        after = worker._replace(at="look" if there else "write")
        yield i, f"w{i} asks whether the part exists: {there}", moved(state, i, after)

    def on_write(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        yield from self.put_unit(state, i, worker)


@mutant("I2", claims=True)
class LeaseOnly(Overwriting):
    """Trusts its lease, and writes the part unconditionally."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        yield from self.put_unit(state, i, worker)


@mutant("I2", lost=1)
class RetriesUnconditionally(Overwriting):
    """Creates the part, but repeats an unanswered request as a plain write."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE; without an answer go on with a PUT."""
        slot, body = self.commits[worker.plan][worker.unit], self.body(i, worker)
        won, look, again = (worker._replace(at=at) for at in ("count", "look", "write"))
        yield from self.create(state, i, slot, body, yes=won, exists=look, unclear=again)

    def on_write(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        yield from self.put_unit(state, i, worker)


@mutant("I2")
class NotExact(Unconditional):
    """Declares `commit: deterministic` for code that is not, on a store without conditional writes."""


@mutant("I5", lost=1)
class ExistsMeansLost(Protocol):
    """Takes "exists" for another worker's commit, without reading back."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE, and again without an answer."""
        slot, body = self.commits[worker.plan][worker.unit], self.body(i, worker)
        won, lost = worker._replace(at="count"), worker._replace(at="lost")
        yield from self.create(state, i, slot, body, yes=won, exists=lost, unclear=worker)

    def on_lost(self, state: State, i: int, worker: Worker) -> Steps:
        """Leave the unit."""
        yield self.lose(state, i, worker, f"w{i} believes another's is there")


@mutant("I5", lost=1)
class ConflictMeansExists(ExistsMeansLost):
    """Takes 409, which asks for another try, for "exists"."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE; a 409 is one of the ways to get no answer."""
        slot, body = self.commits[worker.plan][worker.unit], self.body(i, worker)
        won, look, lost = (worker._replace(at=at) for at in ("count", "look", "lost"))
        yield from self.create(state, i, slot, body, yes=won, exists=look, unclear=lost)


@mutant("I1")
class Streams(Overwriting):
    """Writes the part under its own name while rows are computed."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """Write the first half."""
        slot, half = self.commits[worker.plan][worker.unit], Body("torn", i, worker.plan)
        rest, look = worker._replace(at="write"), worker._replace(at="look")
        yield from self.create(state, i, slot, half, yes=rest, exists=look, unclear=look)

    def on_write(self, state: State, i: int, worker: Worker) -> Steps:
        """Write the rest."""
        yield from self.put_unit(state, i, worker)


@mutant("I4", crashes=1)
class ProgressFirst(Protocol):
    """Records a unit as done before its part is written."""

    more_kinds: ClassVar[tuple[str, ...]] = ("progress",)

    def first_step(self) -> str:
        """Begin with the record of progress."""
        return "progress"

    def on_progress(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the record of progress."""
        slot, go = self.slot("progress", worker.plan, worker.unit), worker._replace(at="commit")
        yield from self.create(state, i, slot, i, yes=go, exists=go, unclear=worker)

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Go by the records of progress."""
        units = range(self.scope.units)
        if all(state.store[self.slot("progress", plan, unit)] is not None for unit in units):
            after = Worker("manifest", plan, memo=self.partial(state.store, plan))
            yield i, f"w{i} sees all units recorded", moved(state, i, after)


@mutant("I6", parts=2, deterministic=True)
class RecordFirst(Protocol):
    """Creates a unit's record before its parts."""

    def first_step(self) -> str:
        """Begin with the record."""
        return "commit"

    def on_count(self, state: State, i: int, worker: Worker) -> Steps:
        """Write the parts."""
        yield i, f"w{i} goes on to the parts", moved(state, i, worker._replace(at="part"))


@mutant("I5", lost=1, outages=1)
class CountsUnknown(Protocol):
    """Counts a unit as its own when the store does not say whose it is."""

    def unknown(self, state: State, i: int, worker: Worker) -> State:
        """Count."""
        return moved(state, i, worker._replace(at="count"))


@mutant("I2", lost=1, outages=1)
class UnknownCleansUp(Protocol):
    """Deletes the part when the store does not say whose it is."""

    def unknown(self, state: State, i: int, worker: Worker) -> State:
        """Go on to clean up."""
        return moved(state, i, worker._replace(at="clear"))

    def on_clear(self, state: State, i: int, worker: Worker) -> Steps:
        """DELETE what would have been its commit."""
        yield self.delete(state, i, Worker("start"), self.commits[worker.plan][worker.unit])


@mutant("I2", lost=1)
class LoserCleansUp(UnknownCleansUp):
    """Takes "exists" for a failed attempt, and deletes the name that it tried to write."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE, and again without an answer."""
        slot, body = self.commits[worker.plan][worker.unit], self.body(i, worker)
        won, lost = worker._replace(at="count"), worker._replace(at="clear")
        yield from self.create(state, i, slot, body, yes=won, exists=lost, unclear=worker)


@mutant("I6", lost=1, outages=1, parts=2, deterministic=True)
class UnknownDropsParts(Protocol):
    """Deletes a unit's parts when the store does not say whether their record was written."""

    def unknown(self, state: State, i: int, worker: Worker) -> State:
        """Go on to clean up."""
        return moved(state, i, worker._replace(at="clear"))

    def on_clear(self, state: State, i: int, worker: Worker) -> Steps:
        """DELETE the first part."""
        digest = self.data(i) if self.scope.digests else 0
        yield self.delete(state, i, Worker("start"), self.parts[worker.plan][worker.unit][digest][0])


@mutant("I6", lost=1, parts=2, digests=True)
class ExistsDropsParts(UnknownDropsParts):
    """Takes a record that exists for another's, and deletes its own parts without reading it."""

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the record, and again without an answer."""
        slot, body = self.commits[worker.plan][worker.unit], self.body(i, worker)
        won, lost = worker._replace(at="count"), worker._replace(at="clear")
        yield from self.create(state, i, slot, body, yes=won, exists=lost, unclear=worker)


@mutant("I5", lost=1)
class NewIdOnRetry(Protocol):
    """Draws a new attempt id for each try, and so takes its own write for another's."""

    def is_mine(self, body: Body, i: int) -> bool:
        """Compare with the newest id."""
        _ = body, i
        return False


@mutant("I5")
class CountsOthers(Protocol):
    """Counts a unit whenever it is committed after its attempt, whoever did it."""

    def is_mine(self, body: Body, i: int) -> bool:
        """Be content with anything."""
        _ = body, i
        return True


@mutant("I5", deterministic=True)
class ComparesBytes(WithoutStamps):
    """Knows its commit by the bytes, which are the same for every worker, instead of by the stamp."""


@mutant("I8", parts=2, digests=True)
class MixesAttempts(Protocol):
    """Names a unit's parts without a digest of its rows, so that parts of two attempts meet under a record."""

    def part_slots(self, plan: int, unit: int) -> list[list[int]]:
        """Return the same names whatever the bytes are."""
        names = [self.slot("part", plan, unit, part) for part in range(self.scope.parts)]
        return [names] * self.scope.workers


@mutant("I9", parts=1, digests=True, deterministic=True)
class AttemptInNames(Protocol):
    """Names a unit's parts by the attempt instead of a digest of its rows, so that each run leaves other names."""

    def data(self, i: int) -> int:
        """Tell workers apart."""
        return i


@mutant("L1", parts=2, deterministic=True, crashes=1)
class GivesUpOnParts(Protocol):
    """Takes a part that exists below a record for a unit that another will finish."""

    def on_part(self, state: State, i: int, worker: Worker) -> Steps:
        """Leave the unit if the part is there."""
        slot = self.parts[worker.plan][worker.unit][0][worker.part]
        if state.store[slot] is None:
            yield from super().on_part(state, i, worker)
        else:
            yield i, f"w{i} leaves the unit to another", moved(state, i, Worker("idle", worker.plan))


@mutant("L1", claims=True)
class ClaimForever(Protocol):
    """Never takes over the claim of a worker that is silent."""

    def steal(self, state: State, i: int, go: Worker, slot: int) -> Steps:
        """Wait."""
        _ = state, i, go, slot
        yield from ()
