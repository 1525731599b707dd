"""The protocol, whole: how a generation ends, what gc may delete, and which crashes there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from tests.model.units import DAMAGED, Units
from tests.model.world import ELSE, Manifest, Seal, State, Steps, Store, Worker, moved, put

_NOT_RUNNING = {"start", "refused", "end", "failed"}


class Protocol(Units):
    """Everything that may happen next, in every order: `successors`."""

    def content(self, store: Store, plan: int) -> Manifest | None:
        """Return the manifest that the store implies, or None while a unit or a parent is missing."""
        if any(store[slot] is None for slot in self.commits[plan]):
            return None
        own = Protocol.partial(self, store, plan)
        if not self.plans[plan].child:
            return own
        parent: Manifest | None = store[self.manifests[self.parent(store, plan)]]
        return None if parent is None else Manifest(parent.parts + own.parts)

    def partial(self, store: Store, plan: int) -> Manifest:
        """Return a plan's own parts as far as they are there."""
        bodies = ((unit, store[slot]) for unit, slot in enumerate(self.commits[plan]))
        return Manifest(tuple((plan, unit, body.data) for unit, body in bodies if body is not None))

    def on_idle(self, state: State, i: int, worker: Worker) -> Steps:
        """Take a unit; or finish, if a LIST shows all of them; or stop, if a later plan is seen."""
        plan = worker.plan
        if self.latest(state.store) != plan:
            yield i, f"w{i} stops: a later plan", moved(state, i, Worker("start"))
        for unit in range(self.scope.units):
            if not self.is_done(state.store, plan, unit):
                yield self.take(state, i, worker, unit)
        yield from self.finish(state, i, plan)

    def finish(self, state: State, i: int, plan: int) -> Steps:
        """Begin to finish: LIST and read what the manifest is made of."""
        content = self.content(state.store, plan)
        if content is not None:
            yield i, f"w{i} sees all units", moved(state, i, Worker("manifest", plan, memo=content))

    def on_manifest(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the manifest."""
        yes, look = worker._replace(at="seal"), worker._replace(at="compare")
        slot = self.manifests[worker.plan]
        yield from self.create(state, i, slot, worker.memo, yes=yes, exists=look, unclear=look)

    def on_compare(self, state: State, i: int, worker: Worker) -> Steps:
        """Read the manifest back: whoever wrote it wrote the same."""
        there = state.store[self.manifests[worker.plan]]
        if there is None:
            yield i, f"w{i} reads back: no manifest", moved(state, i, worker._replace(at="manifest"))
        elif there == worker.memo:
            yield i, f"w{i} reads back: the same manifest", moved(state, i, worker._replace(at="seal"))
        else:
            yield i, f"w{i} reads back: another manifest", moved(state, i, Worker("failed", worker.plan))

    def on_seal(self, state: State, i: int, worker: Worker) -> Steps:
        """Read `_SUCCESS`: CREATE it, REPLACE that of a lower generation, leave any other."""
        there: Seal | None = state.store[self.seal]
        if there is None:
            words, after = "there is none", worker._replace(at="seal first")
        elif self.plans[there.plan].generation < self.plans[worker.plan].generation:
            words, after = "an earlier one", worker._replace(at="seal next", part=there.plan)
        else:
            words, after = "leaves it", Worker("end", worker.plan)
        yield i, f"w{i} reads _SUCCESS: {words}", moved(state, i, after)

    def on_seal_first(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE `_SUCCESS`."""
        again, value = worker._replace(at="seal"), Seal(worker.plan, worker.memo)
        done = Worker("end", worker.plan)
        yield from self.create(state, i, self.seal, value, yes=done, exists=again, unclear=again)

    def on_seal_next(self, state: State, i: int, worker: Worker) -> Steps:
        """REPLACE the version of `_SUCCESS` that was read; a plan is sealed once, so it is its version."""
        again, value = worker._replace(at="seal", part=0), Seal(worker.plan, worker.memo)
        there = state.store[self.seal]
        seen = there if there.plan == worker.part else None
        done = Worker("end", worker.plan)
        yield from self.replace(state, i, self.seal, value, seen=seen, yes=done, unclear=again)

    def on_end(self, state: State, i: int, worker: Worker) -> Steps:
        """Exit 0. The process may be started again for a plan that came or that is wanted."""
        if self.latest(state.store) != worker.plan:
            yield i, f"w{i} is started again", moved(state, i, Worker("start"))
        else:
            yield from self.renew(state, i, worker.plan)

    def on_failed(self, state: State, i: int, _: Worker) -> Steps:
        """Exit 65; somebody starts it again."""
        yield i, f"w{i} is started again", moved(state, i, Worker("start"))

    def victims(self, store: Store) -> Iterator[int]:
        """Yield what gc may delete, commits before what they refer to.

        That is everything of plans before the sealed one that it does not add to, but for the register;
        and of the others the spill of committed units, and parts that their records do not name.
        """
        seal = store[self.seal]
        for plan in range(len(self.plans)):
            if not self.is_live(store, plan):
                if self.plans[plan].generation < self.plans[seal.plan].generation:
                    yield from self.remains(plan)
                continue
            for unit, commit in enumerate(self.commits[plan]):
                if store[commit] is not None:
                    yield from self.spills[plan][unit]
                    if self.scope.digests:
                        yield from (
                            slot
                            for digest, parts in enumerate(self.parts[plan][unit])
                            for slot in parts
                            if digest != store[commit].data
                        )

    def remains(self, plan: int) -> Iterator[int]:
        """Yield every name of a plan, but for the register."""
        yield self.manifests[plan]
        yield from self.commits[plan]
        for unit in range(self.scope.units):
            for parts in self.parts[plan][unit]:
                yield from parts
            yield from self.spills[plan][unit]
            yield self.claims[plan][unit]
        yield self.plan_files[plan]

    def sweep(self, state: State) -> Steps:
        """Let gc look, or delete one name of those that it found, however long ago that was."""
        if not state.sweep:
            found = tuple(slot for slot in self.victims(state.store) if state.store[slot] is not None)
            if found:
                yield ELSE, f"gc finds {len(found)} names to delete", state._replace(sweep=found)
            return
        slot, *rest = state.sweep
        store, broken = put(state.store, slot, None), self.harm(state.store, slot)
        yield (
            ELSE,
            f"gc deletes {self.words[slot]}",
            state._replace(store=store, sweep=tuple(rest), broken=broken),
        )

    def crash(self, state: State, i: int, worker: Worker) -> State:
        """Let a process die. Another one may be started in its place."""
        faults = state.faults._replace(crashes=state.faults.crashes - 1)
        return moved(self.retired(state, i, worker), i, Worker("start"))._replace(faults=faults)

    def damage(self, state: State) -> Steps:
        """Let a spilled batch rot."""
        faults = state.faults._replace(damages=state.faults.damages - 1)
        for slot, (kind, *_) in enumerate(self.names):
            if kind == "spill" and state.store[slot] not in {None, DAMAGED}:
                store = put(state.store, slot, DAMAGED)
                yield ELSE, f"{self.words[slot]} rots", state._replace(store=store, faults=faults)

    @cached_property
    def acts(self) -> dict[str, Callable[[State, int, Worker], Steps]]:
        """Return what a worker does at each of its steps, by name."""
        names = [name.removeprefix("on_") for name in dir(self) if name.startswith("on_")]
        return {name.replace("_", " "): getattr(self, f"on_{name}") for name in names}

    def successors(self, state: State) -> Steps:
        """Yield everything that may happen next."""
        for i, worker in enumerate(state.workers):
            yield from self.acts[worker.at](state, i, worker)
            if state.faults.crashes and worker.at not in _NOT_RUNNING:
                yield ELSE, f"w{i} dies", self.crash(state, i, worker)
        if state.late:
            yield from self.arrivals(state)
        if state.faults.damages:
            yield from self.damage(state)
        if self.scope.sweeps:
            yield from self.sweep(state)
