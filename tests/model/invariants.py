"""What holds in every state: the promises about the store, and that somebody can always go on."""

from __future__ import annotations

from tests.model.planning import Planning
from tests.model.protocol import Protocol
from tests.model.world import NOBODY, Body, Manifest, Seal, State, Store, Value

PROMISES = {
    "I1": "no partial object is seen under a part's name",
    "I2": "what is committed, and which plan a generation has, never changes",
    "I3": "_SUCCESS names a plan whose units, and those of its parents, are all committed; it never goes back",
    "I4": "the manifest is what the store holds, and _SUCCESS names that manifest",
    "I5": "a unit is counted by the one attempt that committed it, and by no other",
    "I6": "nothing refers to an object that is missing",
    "I7": "no output of another generation or of another job",
    "I8": "every row exactly once",
    "I9": "code that gives the same bytes each time leaves the same output, whatever happened on the way",
    "F1": "one order to compute anew makes one generation",
    "S1": "finished batches of an uncommitted unit are kept",
    "L1": "any one worker, alone and without further faults, can bring the job to its end",
}
_FLAWS = {
    "torn": "I1 half a part is seen under its name",
    "foreign": "I7 a part holds another generation's rows",
    "twice": "I8 a part has rows twice",
    "damaged": "I8 a part holds damaged rows",
}


class Watch:
    """Looks at every state that is new. Many states share a store, which is looked at once."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._stores: dict[Store, str] = {}

    def broken(self, before: State, after: State) -> str:
        """Return the promise that a step or the state after it breaks, or nothing."""
        found = self._stores.get(after.store)
        if found is None:
            found = self._stores[after.store] = _store(self._protocol, after.store)
        return (
            after.broken
            or found
            or _went_back(self._protocol, before, after)
            or _workers(self._protocol, after)
        )


def _store(protocol: Protocol, store: Store) -> str:
    """Check what a store holds."""
    for plan in range(len(protocol.plans)):
        found = _plan(protocol, store, plan) if protocol.is_live(store, plan) else ""
        if found:
            return found
    seal: Seal | None = store[protocol.seal]
    return "" if seal is None else _sealed(protocol, store, seal)


def _workers(protocol: Protocol, state: State) -> str:
    """Check that nobody works on a plan of another job."""
    if protocol.scope.rivals != "jobs":
        return ""
    for i, worker in enumerate(state.workers):
        if worker.plan != NOBODY and not Planning.agrees(protocol, i, worker.plan):
            return "I7 a worker follows the plan of another job"
    return ""


def _plan(protocol: Protocol, store: Store, plan: int) -> str:
    """Check one plan that is registered and in use: its file, its units, its manifest."""
    if store[protocol.registers[protocol.plans[plan].generation - 1]] != plan:
        return ""
    if store[protocol.plan_files[plan]] is None:
        return "I6 the register names a plan that is missing"
    for unit, commit in enumerate(protocol.commits[plan]):
        body = store[commit]
        found = "" if body is None else _unit(protocol, store, plan, unit)
        if found:
            return found
    manifest: Manifest | None = store[protocol.manifests[plan]]
    return "" if manifest is None else _manifest(protocol, store, plan, manifest)


def _unit(protocol: Protocol, store: Store, plan: int, unit: int) -> str:
    """Check one committed unit."""
    body: Body = store[protocol.commits[plan][unit]]
    if isinstance(body.data, str):
        return _FLAWS[body.data]
    if body.plan != plan:
        return "I7 a unit of one generation is taken for that of another"
    return _record(protocol, store, plan, unit) if protocol.scope.parts else ""


def _record(protocol: Protocol, store: Store, plan: int, unit: int) -> str:
    """Check that the parts below a record are there, and that they are of one attempt.

    Another attempt may have put a row into another part: a mixture has rows twice, or never.
    """
    data = store[protocol.commits[plan][unit]].data
    parts = protocol.parts[plan][unit][data if protocol.scope.digests else 0]
    if any(store[slot] is None for slot in parts):
        return "I6 a record names a part that is missing"
    if any(store[slot].data != data for slot in parts):
        return "I8 a unit's parts are of two attempts that differ"
    return ""


def _manifest(protocol: Protocol, store: Store, plan: int, manifest: Manifest) -> str:
    """Check a manifest against what the store implies, whatever its writer thinks of that."""
    family = set(protocol.chain(store, plan))
    if any(of not in family for of, *_ in manifest.parts):
        return "I7 a manifest names another generation's parts"
    if any(store[protocol.manifests[of]] is None for of in family):
        return "I6 a manifest rests on a parent's that is missing"
    implied = Protocol.content(protocol, store, plan)
    if implied is None or implied.parts != manifest.parts:
        return "I4 a manifest is not what the store holds"
    return ""


def _sealed(protocol: Protocol, store: Store, seal: Seal) -> str:
    """Check the plan that `_SUCCESS` names, and those that it adds to."""
    for plan in protocol.chain(store, seal.plan):
        if any(store[slot] is None for slot in protocol.commits[plan]):
            return "I3 _SUCCESS names a plan with a unit that is missing"
        if store[protocol.plan_files[plan]] is None:
            return "I6 _SUCCESS rests on a plan that is missing"
        if store[protocol.manifests[plan]] is None:
            return "I6 _SUCCESS rests on a manifest that is missing"
    if store[protocol.manifests[seal.plan]] != seal.manifest:
        return "I4 _SUCCESS names another manifest"
    return ""


def _went_back(protocol: Protocol, before: State, after: State) -> str:
    """Check that a step leads `_SUCCESS` forward."""
    old, new = before.store[protocol.seal], after.store[protocol.seal]
    if old is new or old is None:
        return ""
    if new is None or protocol.plans[new.plan].generation < protocol.plans[old.plan].generation:
        return "I3 _SUCCESS goes back to an earlier generation"
    return ""


def is_finished(protocol: Protocol, state: State) -> bool:
    """Tell whether the latest plan is sealed."""
    seal = state.store[protocol.seal]
    return seal is not None and seal.plan == Planning.latest(protocol, state.store)


def outcome(protocol: Protocol, state: State) -> tuple[Value, ...]:
    """Return what a finished output holds, without whose attempts it was."""
    kept = {"part", "record", "manifest", "seal"}
    published = (value for (kind, *_), value in zip(protocol.names, state.store, strict=True) if kind in kept)
    return tuple(value.data if isinstance(value, Body) else value for value in published)


def can_go_on(protocol: Protocol, state: State, i: int) -> bool:
    """Tell whether a worker's job is the one that the output follows: others stay away."""
    latest = Planning.latest(protocol, state.store)
    return state.workers[i].at != "refused" and (latest == NOBODY or Planning.agrees(protocol, i, latest))
