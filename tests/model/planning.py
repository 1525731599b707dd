"""Which plan there is: plans and their register, and the question which of them are still in use."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.world import ELSE, NOBODY, State, Step, Steps, Store, Worker, World, moved


class Planning(World):
    """A process starts, finds the latest plan or makes one, and follows the one that is registered."""

    def variant(self, i: int) -> int:
        """Return how a worker cuts its plans."""
        return i if self.scope.rivals else 0

    def agrees(self, i: int, plan: int) -> bool:
        """Tell whether a plan is one of the job that a worker was started with."""
        return self.scope.rivals != "jobs" or self.plans[plan].variant == self.variant(i)

    def latest(self, store: Store) -> int:
        """Return the plan of the highest generation in the register, or NOBODY."""
        for slot in reversed(self.registers):
            if store[slot] is not None:
                return int(store[slot])
        return NOBODY

    def parent(self, store: Store, plan: int) -> int:
        """Return the plan that a plan adds to, or NOBODY."""
        generation, child, _ = self.plans[plan]
        there = store[self.registers[generation - 2]] if child else None
        return NOBODY if there is None else int(there)

    def chain(self, store: Store, plan: int) -> Iterator[int]:
        """Yield a plan and those that it adds to."""
        while plan != NOBODY:
            yield plan
            plan = self.parent(store, plan)

    def is_live(self, store: Store, plan: int) -> bool:
        """Tell whether a plan is the sealed one, one that it adds to, or a later one.

        What becomes of any other is of no account: readers go by `_SUCCESS`.
        """
        seal = store[self.seal]
        if seal is None or self.plans[plan].generation > self.plans[seal.plan].generation:
            return True
        return plan in self.chain(store, seal.plan)

    def harm(self, store: Store, slot: int) -> str:
        """Say what the deletion of a name breaks at once; what it breaks for others is seen in the store."""
        kind, *where = self.names[slot]
        if kind == "register":
            return "I2 a generation is deleted from the register"
        if kind not in {"part", "record", "spill"} or not self.is_live(store, int(where[0])):
            return ""
        commit = self.commits[int(where[0])][int(where[1])]
        if slot == commit:
            return "I2 a committed unit is deleted"
        if kind == "spill" and store[commit] is None:
            return "S1 finished batches of an uncommitted unit are deleted"
        return ""

    def renewals(self, store: Store, i: int, latest: int) -> Iterator[int]:
        """Yield the plans of the next generation that a process may begin: --force, or new input.

        --force asks that the latest plan is finished or is one of another job: any moment may be right.
        """
        generation = self.plans[latest].generation
        for number, plan in enumerate(self.plans):
            if plan.generation != generation + 1 or plan.variant != self.variant(i):
                continue
            if not plan.child or store[self.manifests[latest]] is not None:
                yield number

    def on_start(self, state: State, i: int, _: Worker) -> Steps:
        """LIST the output, read the latest plan: none, one of this job, or one of another."""
        latest = self.latest(state.store)
        if latest == NOBODY:
            yield i, f"w{i} starts: no plan", moved(state, i, Worker("plan", self.variant(i)))
            return
        after = Worker("idle", latest) if self.agrees(i, latest) else Worker("refused")
        yield i, f"w{i} starts: {self.words[self.plan_files[latest]]}", moved(state, i, after)
        yield from self.renew(state, i, latest)

    def renew(self, state: State, i: int, latest: int) -> Steps:
        """Begin the next generation, as somebody orders."""
        for plan in self.renewals(state.store, i, latest):
            words = f"w{i} starts: wants {self.words[self.plan_files[plan]]}"
            yield ELSE, words, moved(state, i, Worker("plan", plan))

    def on_plan(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the plan, whose name is its content: one that is there is the same."""
        slot, value = self.plan_files[worker.plan], self.parent(state.store, worker.plan)
        after = worker._replace(at="register")
        yield from self.create(state, i, slot, value, yes=after, exists=after, unclear=worker)

    def on_register(self, state: State, i: int, worker: Worker) -> Steps:
        """CREATE the generation's register, after the plan that it names."""
        slot = self.registers[self.plans[worker.plan].generation - 1]
        look = worker._replace(at="adopt")
        mine = Worker("idle", worker.plan)
        yield from self.create(state, i, slot, worker.plan, yes=mine, exists=look, unclear=look)

    def on_adopt(self, state: State, i: int, worker: Worker) -> Steps:
        """Read the register back and follow it, if that plan is one of the same job."""
        there = state.store[self.registers[self.plans[worker.plan].generation - 1]]
        if there is None:
            yield i, f"w{i} reads the register: nothing", moved(state, i, worker._replace(at="register"))
        elif not self.agrees(i, there):
            yield i, f"w{i} refuses: another job", moved(state, i, Worker("refused"))
        elif self.plans[there].child == self.plans[worker.plan].child:
            yield i, f"w{i} follows the register", moved(state, i, Worker("idle", there))
        else:
            yield self.differ(state, i)

    def differ(self, state: State, i: int) -> Step:
        """Begin anew after another order made this generation: --force and new input met."""
        return i, f"w{i} finds another order's plan", moved(state, i, Worker("start"))

    def on_refused(self, _state: State, _i: int, _worker: Worker) -> Steps:
        """Stay away: exit code 67."""
        yield from ()
