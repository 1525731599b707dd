"""A unit: taken by whoever likes, computed, created once, read back after anything but a yes, counted."""

from __future__ import annotations

from tests.model.planning import Planning
from tests.model.world import ELSE, NOBODY, Body, State, Step, Steps, Store, Worker, moved, put

DAMAGED = -1


class Units(Planning):
    """Assignment is advisory: any worker may take any unit that it saw uncommitted, and sleep then."""

    def is_done(self, store: Store, plan: int, unit: int) -> bool:
        """Tell whether a unit is committed: its part, or its record, exists."""
        return store[self.commits[plan][unit]] is not None

    def data(self, i: int) -> int:
        """Return which bytes a worker computes; those of two workers differ, unless code is exact."""
        return 0 if self.scope.deterministic else i

    def body(self, i: int, worker: Worker) -> Body:
        """Return what a worker is about to commit."""
        return Body(self.data(i), i, worker.plan)

    def is_mine(self, body: Body, i: int) -> bool:
        """Tell by the stamp whether an attempt created what is there."""
        return body.stamp == i

    def retired(self, state: State, i: int, worker: Worker) -> State:
        """Forget the attempt's id, which nobody will ask for again."""
        if worker.plan == NOBODY:
            return state
        slot = self.commits[worker.plan][worker.unit]
        body = state.store[slot]
        if body is not None and body.stamp == i:
            state = state._replace(store=put(state.store, slot, body._replace(stamp=NOBODY)))
        if not state.late:
            return state
        late = [
            request._replace(value=request.value._replace(stamp=NOBODY))
            if request.slot == slot and request.value.stamp == i
            else request
            for request in state.late
        ]
        return state._replace(late=tuple(late))

    def take(self, state: State, i: int, worker: Worker, unit: int) -> Step:
        """Begin an attempt at a unit."""
        first = "claim" if self.scope.claims else self.first_step()
        return i, f"w{i} takes unit {unit}", moved(state, i, Worker(first, worker.plan, unit))

    def first_step(self) -> str:
        """Return what an attempt does first: look for finished batches, write parts, or commit."""
        if self.scope.spill:
            return "resume"
        return "part" if self.scope.parts else "commit"

    def on_claim(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE a claim. One that is there holds as long as its owner's heartbeat is seen to change."""
        slot = self.claims[worker.plan][worker.unit]
        go = worker._replace(at=self.first_step())
        idle = Worker("idle", worker.plan)
        if state.store[slot] == i:
            yield i, f"w{i} finds its claim", moved(state, i, go)
            return
        yield from self.create(state, i, slot, i, yes=go, exists=idle, unclear=idle)
        if state.store[slot] is not None:
            yield from self.steal(state, i, go, slot)

    def steal(self, state: State, i: int, go: Worker, slot: int) -> Steps:
        """Take a unit whose owner was silent for too long: the claim of the next epoch."""
        yield i, f"w{i} finds the claim stale", moved(state, i, go, put(state.store, slot, i))

    def on_resume(self, state: State, i: int, worker: Worker) -> Steps:
        """LIST the unit's spill; of several attempts' copies of a batch one is taken."""
        found = [
            by
            for by, slot in enumerate(self.spills[worker.plan][worker.unit])
            if state.store[slot] is not None
        ]
        after = worker._replace(at="load", memo=found[0]) if found else worker._replace(at="spill")
        yield i, f"w{i} finds {len(found)} copies in the spill", moved(state, i, after)

    def on_load(self, state: State, i: int, worker: Worker) -> Steps:
        """Read a finished batch. A copy that is damaged or gone is computed anew."""
        there = state.store[self.spills[worker.plan][worker.unit][worker.memo]]
        usable = there is not None and there != DAMAGED
        after = worker._replace(at="commit" if usable else "spill", memo=None)
        yield (
            i,
            f"w{i} {'loads the spill' if usable else 'finds no use in the spill'}",
            moved(state, i, after),
        )

    def on_spill(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the first batch in the spill, under the attempt's own name; without an answer, go on."""
        slot = self.spills[worker.plan][worker.unit][i]
        go = worker._replace(at="commit")
        yield from self.create(state, i, slot, worker.plan, yes=go, exists=go, unclear=go)

    def on_part(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the parts below a record, one by one; one that is there stays."""
        data = self.data(i)
        slot = self.parts[worker.plan][worker.unit][data if self.scope.digests else 0][worker.part]
        more = worker.part + 1 < self.scope.parts
        after = worker._replace(part=worker.part + 1) if more else worker._replace(at="commit", part=0)
        yield from self.create(
            state, i, slot, Body(data, NOBODY, worker.plan), yes=after, exists=after, unclear=worker
        )

    def on_commit(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE what commits the unit, with the attempt's id as its stamp."""
        slot = self.commits[worker.plan][worker.unit]
        won, look = worker._replace(at="count"), worker._replace(at="look")
        yield from self.create(state, i, slot, self.body(i, worker), yes=won, exists=look, unclear=look)

    def on_look(self, state: State, i: int, worker: Worker) -> Steps:
        """Read the stamp back: nothing there, mine, another's, or no answer for five minutes."""
        body = state.store[self.commits[worker.plan][worker.unit]]
        if body is None:
            yield i, f"w{i} reads back: nothing there", moved(state, i, worker._replace(at="commit"))
        elif self.is_mine(body, i):
            yield i, f"w{i} reads back: its own", moved(state, i, worker._replace(at="count"))
        else:
            yield self.lose(state, i, worker, f"w{i} reads back: another's")
        faults = state.faults
        if faults.outages:
            after = self.unknown(state, i, worker)
            yield (
                ELSE,
                f"w{i} reads back: no answer",
                after._replace(faults=faults._replace(outages=faults.outages - 1)),
            )

    def unknown(self, state: State, i: int, worker: Worker) -> State:
        """Delete nothing, count nothing, exit 69; the next process LISTs."""
        return moved(self.retired(state, i, worker), i, Worker("start"))

    def lose(self, state: State, i: int, worker: Worker, words: str) -> Step:
        """Drop the attempt: somebody else's is there. Its own parts have names that nobody reads."""
        body = state.store[self.commits[worker.plan][worker.unit]]
        broken = ""
        if (body is None or body.stamp == i) and self.is_live(state.store, worker.plan):
            broken = "I5 a worker leaves its own unit to another"
        after = Worker("scrub", *worker[1:3]) if self.scope.digests else Worker("idle", worker.plan)
        return i, words, moved(self.retired(state, i, worker), i, after, broken=broken)

    def on_scrub(self, state: State, i: int, worker: Worker) -> Steps:
        """DELETE the parts of a lost attempt, unless the record that is there names the same bytes."""
        record = state.store[self.commits[worker.plan][worker.unit]]
        if record is not None and record.data != self.data(i):
            for slot in self.parts[worker.plan][worker.unit][self.data(i)]:
                if state.store[slot] is not None:
                    yield self.delete(state, i, worker, slot)
                    return
        yield i, f"w{i} is done with a lost unit", moved(state, i, Worker("idle", worker.plan))

    def delete(self, state: State, i: int, worker: Worker, slot: int) -> Step:
        """DELETE a name."""
        broken = self.harm(state.store, slot)
        return (
            i,
            f"w{i} deletes {self.words[slot]}",
            moved(state, i, worker, put(state.store, slot, None), broken),
        )

    def on_count(self, state: State, i: int, worker: Worker) -> Steps:
        """Count the unit as its own. Counts of a plan that is no longer in use are of no account."""
        after = Worker("tidy", *worker[1:3]) if self.scope.spill else Worker("idle", worker.plan)
        state, broken = self.count(state, i, worker)
        yield (
            i,
            f"w{i} counts unit {worker.unit}",
            moved(self.retired(state, i, worker), i, after, broken=broken),
        )

    def count(self, state: State, i: int, worker: Worker) -> tuple[State, str]:
        """Count once more; say if what is counted is not its own."""
        if not self.is_live(state.store, worker.plan):
            return state, ""
        body = state.store[self.commits[worker.plan][worker.unit]]
        if body is None or body.stamp != i:
            return state, "I5 a worker counts what it did not commit"
        return self.tally(state, worker)

    def tally(self, state: State, worker: Worker) -> tuple[State, str]:
        """Count once more; say if that is one too many."""
        at = worker.plan * self.scope.units + worker.unit
        twice = "I5 a unit is counted twice" if state.counted[at] else ""
        return state._replace(counted=put(state.counted, at, state.counted[at] + 1)), twice

    def on_tidy(self, state: State, i: int, worker: Worker) -> Steps:
        """DELETE the spill of the unit that it has committed."""
        for slot in self.spills[worker.plan][worker.unit]:
            if state.store[slot] is not None:
                yield self.delete(state, i, worker, slot)
                return
        yield i, f"w{i} is done with unit {worker.unit}", moved(state, i, Worker("idle", worker.plan))
