"""What can be done wrong at the end: manifest, `_SUCCESS`, and gc."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.mutant import mutant
from tests.model.protocol import Protocol
from tests.model.variants import Overwriting, Unconditional
from tests.model.world import Seal, State, Steps, Store, Worker, moved


@mutant("I6")
class SealFirst(Protocol):
    """Writes `_SUCCESS` before the manifest."""

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Go on to `_SUCCESS`."""
        content = self.content(state.store, plan)
        if content is not None:
            yield i, f"w{i} sees all units", moved(state, i, Worker("seal", plan, memo=content))


@mutant("I3", units=2)
class SealsEarly(Protocol):
    """Writes `_SUCCESS` when its own units are done, and leaves the rest to the others."""

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Go on to `_SUCCESS` with what is there."""
        after = Worker("seal", plan, memo=self.partial(state.store, plan))
        yield i, f"w{i} sees its units", moved(state, i, after)


@mutant("I4", units=2)
class FinishesEarly(Protocol):
    """Writes the manifest when its own units are done, of those that are there."""

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Be content with one unit."""
        parts = self.partial(state.store, plan)
        if parts.parts:
            yield i, f"w{i} sees its units", moved(state, i, Worker("manifest", plan, memo=parts))


@mutant("I4", units=2)
class StaleList(Protocol):
    """Makes the manifest of the LIST with which it began, once all units are done."""

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """LIST."""
        after = Worker("listed", plan, memo=self.partial(state.store, plan))
        yield i, f"w{i} lists the parts", moved(state, i, after)

    def on_listed(self, state: State, i: int, worker: Worker) -> Steps:
        """Wait until all units are done."""
        done = self.content(state.store, worker.plan) is not None
        after = worker._replace(at="manifest") if done else Worker("idle", worker.plan)
        yield i, f"w{i} asks whether all units are done: {done}", moved(state, i, after)


class Signs(Overwriting):
    """Puts words of its own into the manifest: a time, a host."""

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Sign."""
        content = self.content(state.store, plan)
        if content is not None:
            after = Worker("manifest", plan, memo=content._replace(by=i))
            yield i, f"w{i} sees all units", moved(state, i, after)


@mutant("I4")
class ManifestOverwritten(Signs):
    """Writes the time into the manifest, and the manifest over another's."""

    def on_manifest(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        slot, go = self.manifests[worker.plan], worker._replace(at="seal")
        yield from self.overwrite(state, i, slot, worker.memo, yes=go, unclear=worker)


@mutant("L1")
class ManifestSigned(Signs):
    """Writes the time into the manifest, so that nobody else can agree with it."""


@mutant("I4")
class SealsItsOwn(Signs):
    """Seals the manifest that it made, without reading which one is there."""

    def on_compare(self, state: State, i: int, worker: Worker) -> Steps:
        """Go on."""
        yield i, f"w{i} goes on", moved(state, i, worker._replace(at="seal"))


@mutant("I3", orders=("force",))
class SealByPut(Overwriting):
    """Looks that `_SUCCESS` names no later generation, and then writes it unconditionally."""

    def on_seal_first(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        value, done = Seal(worker.plan, worker.memo), Worker("end", worker.plan)
        yield from self.overwrite(state, i, self.seal, value, yes=done, unclear=worker)

    def on_seal_next(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        yield from self.on_seal_first(state, i, worker)


@mutant("I3", orders=("force",))
class SealOutOfOrder(Protocol):
    """Replaces any `_SUCCESS` by its own, of whatever generation that is."""

    def on_seal(self, state: State, i: int, worker: Worker) -> Steps:
        """Read the version only."""
        there = state.store[self.seal]
        at, part = ("seal first", 0) if there is None else ("seal next", there.plan)
        yield i, f"w{i} reads _SUCCESS", moved(state, i, worker._replace(at=at, part=part))


@mutant("L1", orders=("force",))
class SealOnlyOnce(Protocol):
    """Creates `_SUCCESS`, and leaves one of an earlier generation as it is."""

    def on_seal(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE or leave."""
        free = state.store[self.seal] is None
        after = worker._replace(at="seal first") if free else Worker("end", worker.plan)
        yield i, f"w{i} reads _SUCCESS", moved(state, i, after)


@mutant("I3", orders=("force",), deterministic=True)
class ForceWithoutCompare(Unconditional):
    """Allows --force on a store without conditional writes: `_SUCCESS` cannot be kept in order."""


@mutant("I5", orders=("force",), sweeps=True)
class CountsSuperseded(Protocol):
    """Counts units of a generation that gc has deleted meanwhile, and that a sleeper wrote again."""

    def count(self, state: State, i: int, worker: Worker) -> tuple[State, str]:
        """Count without looking which generation is the latest."""
        _ = i
        return self.tally(state, worker)


@mutant("I2", orders=("force",), sweeps=True)
class SweepsBeforeSeal(Protocol):
    """Lets gc delete a generation as soon as a later one is registered."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield the parts before the latest plan."""
        latest = self.latest(store)
        for plan in range(latest):
            yield from self.commits[plan]


@mutant("I2", orders=("force",), sweeps=True)
class SweepsOnManifest(Protocol):
    """Lets gc delete a generation once a later one has a manifest, before `_SUCCESS` names it."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield the parts before the last plan with a manifest."""
        finished = [plan for plan, slot in enumerate(self.manifests) if store[slot] is not None]
        for plan in range(max(finished, default=0)):
            yield from self.commits[plan]


@mutant("I2", orders=("force",), sweeps=True)
class SweepsUnsealed(Protocol):
    """Lets gc delete whatever `_SUCCESS` does not name, a generation that is running included."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield the parts of the other plans."""
        seal = store[self.seal]
        for plan in range(len(self.plans)):
            if seal is not None and plan != seal.plan:
                yield from self.commits[plan]


@mutant("I2", orders=("child",), sweeps=True)
class SweepsParents(Protocol):
    """Lets gc delete the generations to which the sealed one adds."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield the parts before the sealed plan."""
        seal = store[self.seal]
        for plan in range(0 if seal is None else seal.plan):
            yield from self.commits[plan]


@mutant("I6", orders=("child",), sweeps=True)
class SweepsParentPlans(Protocol):
    """Lets gc delete plan and manifest of the generations to which the sealed one adds, not their parts."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield the control files before the sealed plan."""
        seal = store[self.seal]
        for plan in range(0 if seal is None else seal.plan):
            yield self.manifests[plan]
            yield self.plan_files[plan]


@mutant("I2", orders=("force",), sweeps=True)
class SweepsRegister(Protocol):
    """Lets gc delete the register of a superseded generation, whose number is then free again."""

    def remains(self, plan: int) -> Iterator[int]:
        """Yield the register too."""
        yield from super().remains(plan)
        yield self.registers[self.plans[plan].generation - 1]


@mutant("I6", sweeps=True)
class SweepsUnregistered(Protocol):
    """Lets gc delete plans that no generation names, one that is about to be registered included."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield such plans."""
        named = {store[slot] for slot in self.registers}
        yield from (slot for plan, slot in enumerate(self.plan_files) if plan not in named)


@mutant("I6", parts=1, digests=True, sweeps=True)
class SweepsUnrecorded(Protocol):
    """Lets gc delete parts that no record names, those of a unit that is being written included."""

    def victims(self, store: Store) -> Iterator[int]:
        """Yield such parts."""
        for plan, units in enumerate(self.parts):
            for unit, digests in enumerate(units):
                record = store[self.commits[plan][unit]]
                for digest, slots in enumerate(digests):
                    if record is None or record.data != digest:
                        yield from slots
