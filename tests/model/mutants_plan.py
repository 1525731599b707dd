"""What can be done wrong with plans, their register, and what begins the next generation."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.mutant import mutant
from tests.model.planning import Planning
from tests.model.protocol import Protocol
from tests.model.variants import Overwriting
from tests.model.world import NOBODY, Manifest, State, Step, Steps, Store, Worker, moved


@mutant("I6")
class RegisterFirst(Protocol):
    """Registers a plan before it is written."""

    def on_plan(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the register."""
        slot = self.registers[self.plans[worker.plan].generation - 1]
        go, look = worker._replace(at="register"), worker._replace(at="adopt")
        yield from self.create(state, i, slot, worker.plan, yes=go, exists=look, unclear=look)

    def on_register(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the plan."""
        slot, mine = self.plan_files[worker.plan], Worker("idle", worker.plan)
        yield from self.create(state, i, slot, NOBODY, yes=mine, exists=mine, unclear=worker)


@mutant("I2", rivals="cuts")
class RegisterByPut(Overwriting):
    """Writes the register unconditionally, after looking that it is not there."""

    def on_register(self, state: State, i: int, worker: Worker) -> Steps:
        """PUT."""
        slot = self.registers[self.plans[worker.plan].generation - 1]
        mine, look = Worker("idle", worker.plan), worker._replace(at="adopt")
        yield from self.overwrite(state, i, slot, worker.plan, yes=mine, unclear=look)


@mutant("I7", rivals="jobs")
class FollowsAnyPlan(Protocol):
    """Follows the plan that it finds without comparing the job."""

    def agrees(self, i: int, plan: int) -> bool:
        """Agree."""
        _ = i, plan
        return True


@mutant("I7", rivals="jobs")
class FollowsTheWinner(Protocol):
    """Compares the job with a plan that it finds, but not with one that was registered first."""

    def on_adopt(self, state: State, i: int, worker: Worker) -> Steps:
        """Follow."""
        there = state.store[self.registers[self.plans[worker.plan].generation - 1]]
        yield i, f"w{i} follows the register", moved(state, i, Worker("idle", there))


@mutant("I7", orders=("force",))
class SamePartNames(Protocol):
    """Names parts by their unit alone, so that --force finds those of the generation before."""

    def commit_slot(self, plan: int, unit: int) -> int:
        """Return the same names for every plan."""
        _ = plan
        return super().commit_slot(0, unit)


@mutant("I7", orders=("force",))
class SamePlanNames(SamePartNames):
    """Leaves the generation out of the plan, so that --force gives the same plan and the same names."""

    def slot(self, *name: str | int) -> int:
        """Return the same names for every plan."""
        kind, *rest = name
        if kind in {"plan", "manifest"}:
            rest = [0]
        return super().slot(kind, *rest)


@mutant("L1", orders=("force",))
class FindsTheFirst(Protocol):
    """Takes the lowest generation of the register for the latest."""

    def latest(self, store: Store) -> int:
        """Return the first plan."""
        there = store[self.registers[0]]
        return NOBODY if there is None else int(there)


@mutant("F1", orders=("force", "force"))
class ForgetsTheOrder(Protocol):
    """Does not note which order began a generation: `--force`, started again, begins one more."""

    def renewals(self, store: Store, i: int, latest: int) -> Iterator[int]:
        """Begin another generation once the latest is finished, as the command line says."""
        if self.plans[latest].generation == 1 or store[self.manifests[latest]] is not None:
            yield from super().renewals(store, i, latest)

    def on_register(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the register."""
        for actor, words, then in super().on_register(state, i, worker):
            twice = then.store[self.registers[2]] is not None
            yield actor, words, then._replace(broken="F1 --force began two generations" if twice else "")


@mutant("L1", orders=("either",), crashes=1)
class RefusesItsOwnJob(Protocol):
    """Ends for good when --force and new input meet: another plan of the same job was registered first."""

    def differ(self, state: State, i: int) -> Step:
        """Refuse, as a plan of another job is refused."""
        return i, f"w{i} refuses: other inputs", moved(state, i, Worker("failed"))

    def on_failed(self, _state: State, _i: int, _worker: Worker) -> Steps:
        """Stay away."""
        yield from ()


@mutant("L1", orders=("child",))
class ChildOfUnfinished(Protocol):
    """Plans new input as a further generation while the one before is still running."""

    def renewals(self, store: Store, i: int, latest: int) -> Iterator[int]:
        """Yield any plan of the next generation."""
        _ = store, i
        generation = self.plans[latest].generation + 1
        yield from (p for p, plan in enumerate(self.plans) if plan.generation == generation)


@mutant("I4", orders=("child",))
class ChildForgetsParent(Protocol):
    """Leaves the parts of the generations before out of an incremental manifest."""

    def content(self, store: Store, plan: int) -> Manifest | None:
        """Return the own parts."""
        whole = super().content(store, plan)
        return whole and Manifest(tuple(part for part in whole.parts if part[0] == plan))


@mutant("I7", orders=("force",))
class ManifestOfEverything(Protocol):
    """Makes the manifest of every part below the root, whichever plan it belongs to."""

    def content(self, store: Store, plan: int) -> Manifest | None:
        """Return all parts."""
        if Planning.latest(self, store) != plan or super().content(store, plan) is None:
            return None
        everything = (Protocol.partial(self, store, p) for p in range(len(self.plans)))
        return Manifest(tuple(part for manifest in everything for part in manifest.parts))
