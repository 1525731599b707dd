"""What a model of the protocol stands on: names in a store, processes, and everything that can go wrong.

A state is a tuple of tuples, so that it can be a key; a step is (worker or ELSE, words, next state).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

NOBODY = -1
ELSE = -1  # a step of no worker that does its work: a fault, an old request that arrives, gc

# What a name holds: None, or a value that depends on the kind of the name.
Value: TypeAlias = Any
Store: TypeAlias = tuple[Value, ...]
Name: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How much there is of everything, and which ways of working are looked at.

    `parts`: 0 if a unit's part is its commit; otherwise the parts that lie under a unit's record, which
    is the commit. `digests`: such parts carry a digest of the unit's rows in their names. `orders`: what
    may begin generations 2, 3...: "force", "child" (incremental) or "either". `rivals`: workers plan
    differently, cutting the same job another way ("cuts") or following different jobs ("jobs").
    The numbers at the end say how often each fault may happen in one history.
    """

    workers: int = 2
    units: int = 1
    parts: int = 0
    digests: bool = False
    deterministic: bool = False
    spill: bool = False
    claims: bool = False
    orders: tuple[str, ...] = ()
    rivals: str = ""
    sweeps: bool = False
    crashes: int = 0
    lost: int = 0
    late: int = 0
    outages: int = 0
    damages: int = 0


class Plan(NamedTuple):
    """A plan: its place in the order of plans, if it adds to the one before, and who cut it."""

    generation: int
    child: bool
    variant: int


class Body(NamedTuple):
    """A part or a record: its bytes (a number, or a word for what is wrong), its attempt, its plan."""

    data: int | str
    stamp: int
    plan: int


class Manifest(NamedTuple):
    """A manifest: (plan, unit, bytes) of every part, and whose words stand in it: nobody's."""

    parts: tuple[tuple[int, int, int | str], ...]
    by: int = NOBODY


class Seal(NamedTuple):
    """`_SUCCESS`: a plan, and what its manifest held when it was sealed."""

    plan: int
    manifest: Manifest


class Request(NamedTuple):
    """A write that is on its way: it applies if the name still holds what was seen."""

    slot: int
    value: Value
    seen: Value


class Worker(NamedTuple):
    """A process: its next step, and what it knows."""

    at: str
    plan: int = NOBODY
    unit: int = 0
    part: int = 0
    memo: Value = None


class Faults(NamedTuple):
    """How often each fault may still happen."""

    crashes: int
    lost: int
    late: int
    outages: int
    damages: int


class State(NamedTuple):
    """Everything at one moment. `broken` says which promise the last step broke."""

    store: Store
    workers: tuple[Worker, ...]
    counted: tuple[int, ...]
    sweep: tuple[int, ...]
    late: tuple[Request, ...]
    faults: Faults
    broken: str = ""


Step: TypeAlias = tuple[int, str, State]
Steps: TypeAlias = Iterator[Step]


def put(store: Store, slot: int, value: Value) -> Store:
    """Return the store with one name changed."""
    new = (value,)
    return store[:slot] + new + store[slot + 1 :]


def moved(state: State, i: int, worker: Worker, store: Store | None = None, broken: str = "") -> State:
    """Return the state after worker `i` went on, and perhaps wrote."""
    workers = state.workers
    new = (worker,)
    return State(
        state.store if store is None else store,
        workers[:i] + new + workers[i + 1 :],
        state.counted,
        state.sweep,
        state.late,
        state.faults,
        broken,
    )


class World:
    """The names of one output folder, and a store that may fail to answer.

    `more_kinds`: names per unit that only some ways of working have.
    """

    more_kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        variants = range(scope.workers if scope.rivals else 1)
        self.plans = [Plan(1, child=False, variant=v) for v in variants]
        for generation, order in enumerate(scope.orders, start=2):
            for child in (False, True):
                if order in {"either", "child" if child else "force"}:
                    self.plans += [Plan(generation, child=child, variant=v) for v in variants]
        self.slots: dict[Name, int] = {}
        self.seal = self.slot("seal")
        self.registers = [self.slot("register", g + 1) for g in range(len(scope.orders) + 1)]
        numbers = range(len(self.plans))
        self.plan_files = [self.slot("plan", p) for p in numbers]
        self.manifests = [self.slot("manifest", p) for p in numbers]
        self.commits = [[self.commit_slot(p, u) for u in range(scope.units)] for p in numbers]
        self.parts = [[self.part_slots(p, u) for u in range(scope.units)] for p in numbers]
        self.spills = [[self.spill_slots(p, u) for u in range(scope.units)] for p in numbers]
        self.claims = [[self.slot("claim", p, u) for u in range(scope.units)] for p in numbers]
        for kind in self.more_kinds:
            for plan in numbers:
                for unit in range(scope.units):
                    self.slot(kind, plan, unit)

    @cached_property
    def names(self) -> list[Name]:
        """Return every name, in the order of the store."""
        return list(self.slots)

    @cached_property
    def words(self) -> list[str]:
        """Return how to call every name."""
        return [self._words(name) for name in self.names]

    def slot(self, *name: str | int) -> int:
        """Return the place of a name in the store."""
        return self.slots.setdefault(name, len(self.slots))

    def commit_slot(self, plan: int, unit: int) -> int:
        """Return the name whose existence commits a unit."""
        return self.slot("record" if self.scope.parts else "part", plan, unit)

    def part_slots(self, plan: int, unit: int) -> list[list[int]]:
        """Return the names of a unit's parts below its record, for each of the bytes they may hold."""
        parts = range(self.scope.parts)
        if not self.scope.digests:
            return [[self.slot("part", plan, unit, part) for part in parts]]
        digests = range(self.scope.workers)
        return [[self.slot("part", plan, unit, part, digest) for part in parts] for digest in digests]

    def spill_slots(self, plan: int, unit: int) -> list[int]:
        """Return the names of a unit's spill, by worker; the attempts of a worker are one here."""
        workers = range(self.scope.workers if self.scope.spill else 0)
        return [self.slot("spill", plan, unit, worker) for worker in workers]

    def _words(self, name: Name) -> str:
        kind, *rest = name
        if kind in {"seal", "register"}:
            return "_SUCCESS" if kind == "seal" else f"GEN/{rest[0]}"
        plan, *where = rest
        generation, child, variant = self.plans[int(plan)]
        whose = f"plan {generation}{'+' * child}{'abc'[variant] if self.scope.rivals else ''}"
        if kind in {"plan", "manifest"}:
            return f"{kind}.json of {whose}"
        text = f"unit {where[0]} of {whose}"
        if kind == "part" and len(where) > 1:
            digest = f", digest {where[2]}" if len(where) > 2 else ""
            return f"part {where[1]} of {text}{digest}"
        return f"{kind} of {text}" + (f" by w{where[1]}" if kind == "spill" else "")

    def initial(self) -> State:
        """Return the state in which nothing has happened."""
        scope = self.scope
        return State(
            store=(None,) * len(self.slots),
            workers=(Worker("start"),) * scope.workers,
            counted=(0,) * (len(self.plans) * scope.units),
            sweep=(),
            late=(),
            faults=Faults(scope.crashes, scope.lost, scope.late, scope.outages, scope.damages),
        )

    def create(
        self, state: State, i: int, slot: int, value: Value, *, yes: Worker, exists: Worker, unclear: Worker
    ) -> Steps:
        """CREATE a name: a yes, "exists", or no answer."""
        what = f"w{i} creates {self.words[slot]}"
        if state.store[slot] is None:
            yield i, what, moved(state, i, yes, put(state.store, slot, value))
        else:
            yield i, f"{what}: exists", moved(state, i, exists)
        yield from self.unanswered(state, i, Request(slot, value, None), unclear=unclear, what=what)

    def replace(
        self, state: State, i: int, slot: int, value: Value, *, seen: Value, yes: Worker, unclear: Worker
    ) -> Steps:
        """REPLACE what was seen under a name: a yes, "it has changed", or no answer."""
        what = f"w{i} replaces {self.words[slot]}"
        if state.store[slot] == seen:
            yield i, what, moved(state, i, yes, put(state.store, slot, value))
        else:
            yield i, f"{what}: it has changed", moved(state, i, unclear)
        yield from self.unanswered(state, i, Request(slot, value, seen), unclear=unclear, what=what)

    def unanswered(self, state: State, i: int, request: Request, *, unclear: Worker, what: str) -> Steps:
        """Lose the answer to a request that was not applied (a 409 is one), was, or will be later."""
        faults = state.faults
        if not faults.lost:
            return
        fewer = faults._replace(lost=faults.lost - 1)
        after = moved(state, i, unclear)._replace(faults=fewer)
        yield ELSE, f"{what}: no answer, nothing is written", after
        if state.store[request.slot] == request.seen:
            store = put(state.store, request.slot, request.value)
            yield ELSE, f"{what}: no answer, but it is written", after._replace(store=store)
        if faults.late:
            fewer = fewer._replace(late=faults.late - 1)
            late = after._replace(faults=fewer, late=(request, *state.late))
            yield ELSE, f"{what}: no answer, it is on its way", late

    def arrivals(self, state: State) -> Steps:
        """Let a request that was on its way arrive."""
        for at, (slot, value, seen) in enumerate(state.late):
            store = put(state.store, slot, value) if state.store[slot] == seen else state.store
            after = state._replace(store=store, late=state.late[:at] + state.late[at + 1 :])
            yield ELSE, f"the request for {self.words[slot]} arrives", after
