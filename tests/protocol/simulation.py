"""The protocol on a virtual clock and a simulated store: one seed, one schedule, replayable.

    python -m tests.protocol.simulation --schedules 20000 --seed 1
    python -m tests.protocol.simulation --schedules 1 --seed 4711 --trace

Processes are greenlets that switch at every store operation and at every wait. A schedule draws how
many there are and how they share the work, how long operations take, which replies are lost (applied
or not), who dies at which operation, who sleeps for hours and wakes up a zombie, whether listings
lag behind, whether leases lie, and whether somebody says --force.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from greenlet import greenlet

from batchinfer.clock import Clock
from batchinfer.data import Entry
from batchinfer.errors import DataError, FingerprintError, UnavailableError
from batchinfer.storage import AlreadyExists, ObjectMissing
from tests.protocol.actor import NUM_UNITS, UNIT_ROWS, Process, RememberingSink

ROOT = "sim://out"
SINKS = {False: RememberingSink(), True: RememberingSink()}


class Dead(BaseException):
    """Ends a process that was killed."""


@dataclass(slots=True)
class Object:
    """What the store keeps under a name."""

    data: bytes
    stamp: dict[str, str]
    version: int
    modified: float


class World:
    """Virtual time, the objects, and whose turn it is."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.objects: dict[str, Object] = {}
        self.versions = 0
        self.violations: list[str] = []
        self.trace = trace
        self._heap: list[tuple[float, int, greenlet]] = []
        self._order = 0
        self.hub = greenlet.getcurrent()

    def schedule(self, actor: greenlet, at: float) -> None:
        """Wake an actor at some time."""
        self._order += 1
        heapq.heappush(self._heap, (at, self._order, actor))

    def run(self) -> None:
        """Let everybody run until nobody is left."""
        while self._heap:
            at, _, actor = heapq.heappop(self._heap)
            if actor.dead:
                continue
            self.now = max(self.now, at)
            actor.switch()

    def pause(self, seconds: float) -> None:
        """Give the turn away for some time. Called by an actor."""
        self.schedule(greenlet.getcurrent(), self.now + seconds)
        self.hub.switch()

    def say(self, text: str) -> None:
        """Tell what happens, if somebody wants to know."""
        if self.trace:
            print(f"{self.now:10.2f}  {text}")


@dataclass(slots=True)
class Habits:
    """What a schedule does to one process."""

    die_at: int | None = None
    sleep_at: int | None = None
    sleep_s: float = 0.0
    lost: float = 0.0
    refused: float = 0.0
    lag: float = 0.0
    lying_leases: bool = False
    rate: float = 1.0


class SimStore:
    """A store as one process sees it: slow, forgetful, sometimes the last thing it sees."""

    conditional = True
    parallel = 1
    patience_s = 300.0

    def __init__(self, world: World, name: str, habits: Habits) -> None:
        self.clock: Clock = SimClock(world, habits.rate)
        self._world = world
        self._name = name
        self._habits = habits
        self._operations = 0

    def entries(self, prefix: str) -> list[Entry]:
        """List; a lagging store leaves out what is very new."""
        self._begin("list", prefix)
        start = prefix.rstrip("/") + "/"
        horizon = self._world.now - 5.0 if self._world.random.random() < self._habits.lag else None
        found = [
            self._entry(uri, there)
            for uri, there in sorted(self._world.objects.items())
            if uri.startswith(start) and (horizon is None or there.modified <= horizon)
        ]
        if self._habits.lying_leases and "/hb" in prefix:
            found = [entry for entry in found if self._world.random.random() < 0.5]
        self._end()
        return found

    def glob(self, pattern: str) -> list[Entry]:
        """Find one object."""
        self._begin("head", pattern)
        there = self._world.objects.get(pattern)
        self._end()
        return [self._entry(pattern, there)] if there else []

    def open(self, uri: str, *, version: str | None = None) -> Any:
        """Nobody opens inputs here."""
        raise AssertionError(uri)

    def read(self, uri: str) -> bytes:
        """Get."""
        self._begin("get", uri)
        there = self._world.objects.get(uri)
        self._end()
        if there is None:
            raise ObjectMissing("missing", where=uri)
        return there.data

    def stamp(self, uri: str) -> Mapping[str, str]:
        """Head."""
        self._begin("stamp", uri)
        there = self._world.objects.get(uri)
        self._end()
        if there is None:
            raise ObjectMissing("missing", where=uri)
        return there.stamp

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        """Put if absent; the reply may be lost, and the client inside may have tried twice."""
        self._begin("create", uri)
        if self._chance(self._habits.refused):
            raise AlreadyExists(uri)  # 409: somebody else is writing, nothing is there
        lies = self._habits.lying_leases and "/claims/" in uri
        exists = uri in self._world.objects
        lost = self._chance(self._habits.lost)
        if lost and self._world.random.random() < 0.5:
            raise UnavailableError("reply lost, not applied", where=uri)
        if not exists or lies:
            self._write(uri, bytes(data), dict(stamp or {}))
        self._end()
        if lost:
            # Lost, or tried again by the client, which then sees its own write.
            if self._world.random.random() < 0.5:
                raise AlreadyExists(uri)
            raise UnavailableError("reply lost, applied", where=uri)
        if exists and not lies:
            raise AlreadyExists(uri)

    def put(self, uri: str, data: Any) -> None:
        """Overwrite."""
        self._begin("put", uri)
        if self._chance(self._habits.lost):
            raise UnavailableError("put lost", where=uri)
        self._write(uri, bytes(data), {})
        self._end()

    def replace(self, uri: str, data: Any, *, version: str) -> None:
        """Compare and set."""
        self._begin("replace", uri)
        there = self._world.objects.get(uri)
        if there is None or str(there.version) != version:
            raise AlreadyExists(uri)
        self._write(uri, bytes(data), {})
        self._end()

    def delete(self, uri: str) -> None:
        """Delete."""
        self._begin("delete", uri)
        if "/part-" in uri or uri.endswith(("_SUCCESS", "manifest.json", "plan.json")):
            self._world.violations.append(f"{self._name} deleted {uri}")
        self._world.objects.pop(uri, None)
        self._end()

    def leftovers(self, prefix: str, *, now: float) -> list[Entry]:
        """There are none."""
        return []

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._world.random.random() < probability

    def _write(self, uri: str, data: bytes, stamp: dict[str, str]) -> None:
        world = self._world
        there = world.objects.get(uri)
        if there is not None and "/part-" in uri:
            world.violations.append(f"I2: {self._name} changed {uri}")
        if there is not None and uri.endswith("_SUCCESS"):
            before, after = (json.loads(text)["generation"] for text in (there.data, data))
            if after < before:
                world.violations.append(f"I3: {self._name} led _SUCCESS back from {before} to {after}")
        world.versions += 1
        world.objects[uri] = Object(data, stamp, world.versions, world.now)

    def _entry(self, uri: str, there: Object) -> Entry:
        return Entry(uri=uri, size_bytes=len(there.data), version=str(there.version), modified=there.modified)

    def _begin(self, what: str, uri: str) -> None:
        """Take time before the operation; perhaps never come to it."""
        self._world.say(f"{self._name} {what} {uri.removeprefix(ROOT)}")
        self._operations += 1
        self._perish(2 * self._operations)
        if self._operations == self._habits.sleep_at:
            self._world.pause(self._habits.sleep_s)
        self._world.pause(self._world.random.expovariate(20.0))

    def _end(self) -> None:
        """Take time before the reply; perhaps never hear it."""
        self._perish(2 * self._operations + 1)
        if self._world.random.random() < 0.5:
            self._world.pause(self._world.random.expovariate(20.0))

    def _perish(self, at: int) -> None:
        if self._habits.die_at == at:
            self._world.say(f"{self._name} dies")
            raise Dead


class SimClock:
    """A process's own clock: it may run fast or slow."""

    def __init__(self, world: World, rate: float) -> None:
        self._world = world
        self._rate = rate
        self._offset = world.random.uniform(0, 1e6)

    def now(self) -> float:
        """Return its time."""
        return self._offset + self._world.now * self._rate

    def sleep(self, seconds: float) -> None:
        """Wait so long by this clock."""
        self._world.pause(seconds / self._rate)


@dataclass(slots=True)
class Outcome:
    """How a schedule went."""

    deaths: int
    operations: int
    problems: list[str]


class Schedule:
    """One schedule: what is drawn for it, and the processes that live through it."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.world = World(seed, trace=trace)
        draw = self.draw = self.world.random
        self.records = draw.random() < 0.25
        self.salted = draw.random() < 0.2  # a model that never gives the same bytes twice
        self.lease = draw.random() < 0.5
        self.lying = self.lease and draw.random() < 0.2
        self.forced = draw.random() < 0.2
        self.shares = draw.choice([None, None, 2, 3])
        self.processes: list[Process] = []
        self.deaths = 0

    def run(self) -> Outcome:
        """Let everybody run, and then, calmly, once more: nothing may be left to do."""
        for number in range(self.shares or self.draw.randint(1, 4)):
            late = self.forced and number == 0
            self._begin(number, self.draw.uniform(0.0, 400.0 if late else 20.0), tries=0)
        self.world.run()
        for number in range(self.shares or 1):
            self._begin(number, self.world.now + 1.0, tries=9)
            self.world.run()
        found = self.world.violations + check(self.world, self.processes, self.records, salted=self.salted)
        return Outcome(self.deaths, self.world.versions, found)

    def _habits(self, *, calm: bool) -> Habits:
        draw = self.draw
        if calm:
            return Habits(lying_leases=self.lying)
        return Habits(
            die_at=draw.randint(2, 120) if draw.random() < 0.7 else None,
            sleep_at=draw.randint(1, 60) if draw.random() < 0.25 else None,
            sleep_s=draw.choice([40.0, 100.0, 5000.0]),
            lost=draw.choice([0.0, 0.0, 0.05, 0.3]),
            refused=draw.choice([0.0, 0.0, 0.1]),
            lag=draw.choice([0.0, 0.0, 0.3]),
            lying_leases=self.lying,
            rate=draw.choice([1.0, 1.0, 0.5, 2.0]),
        )

    def _begin(self, number: int, at: float, *, tries: int) -> None:
        """Start a process at some time."""
        name = f"p{len(self.processes)}"
        store = SimStore(self.world, name, self._habits(calm=tries > 3))
        process = Process(
            store=store,
            root=ROOT,
            owner=f"{number if self.shares else 'any'}-sim-{len(self.processes)}-{name}",
            clock=store.clock,
            sink=SINKS[self.records],
            records=self.records,
            lease=self.lease,
            share=(number, self.shares) if self.shares else None,
            force=self.forced and number == 0,
            salt=name if self.salted else "",
            compute=lambda: self.world.pause(self.draw.uniform(0.1, 30.0)),
        )
        self.processes.append(process)
        actor = greenlet(lambda: self._live(process, number, tries), parent=self.world.hub)
        self.world.schedule(actor, at)

    def _live(self, process: Process, number: int, tries: int) -> None:
        """Run a process; one that ends before its time is started again."""
        try:
            process.run()
        except Dead:
            self.deaths += 1
            self._begin(number, self.world.now + self.draw.uniform(0.0, 60.0), tries=tries + 1)
        except UnavailableError:
            self._begin(number, self.world.now + 10.0, tries=tries + 1)
        except FingerprintError:
            if not self.forced:
                raise
        except DataError as error:
            # A listing that lags at the very end shows a part as gone: run again.
            if "is gone" not in error.message:
                raise
            self._begin(number, self.world.now + 10.0, tries=tries + 1)


def simulate(seed: int, *, trace: bool = False) -> Outcome:
    """Run one schedule and check what it leaves."""
    return Schedule(seed, trace=trace).run()


_golden: dict[tuple[int, bool], dict[str, bytes]] = {}


def golden(generation: int, *, records: bool) -> dict[str, bytes]:
    """Return the parts of an undisturbed run, by name."""
    key = (generation, records)
    if key not in _golden:
        world = World(0)
        process = Process(
            store=SimStore(world, "golden", Habits()),
            root=ROOT,
            owner="any-sim-0-golden",
            clock=SimClock(world, 1.0),
            sink=SINKS[records],
            records=records,
            first=generation,
        )
        actor = greenlet(process.run, parent=world.hub)
        world.schedule(actor, 0.0)
        world.run()
        _golden[key] = parts_of(world, process.plan8)
    return _golden[key]


def parts_of(world: World, plan8: str) -> dict[str, bytes]:
    """Return the parts of a plan."""
    return {
        uri.removeprefix(f"{ROOT}/"): there.data
        for uri, there in world.objects.items()
        if "/part-" in uri and plan8 in uri
    }


def check(world: World, processes: list[Process], records: bool, *, salted: bool) -> list[str]:
    """Check the invariants on what a schedule has left."""
    problems = []
    text = world.objects.get(f"{ROOT}/_SUCCESS")
    if text is None:
        return ["L1: there is no _SUCCESS"]
    seal = json.loads(text.data)
    manifest = json.loads(world.objects[f"{ROOT}/{seal['manifest']}"].data)
    registered = [uri for uri in world.objects if "/GEN/" in uri]
    newest = max(int(uri[-9:-5]) for uri in registered)
    if seal["generation"] != newest:
        problems.append(f"_SUCCESS names generation {seal['generation']} of {newest}")
    parts = parts_of(world, seal["plan"])
    if {part["name"] for part in manifest["parts"]} != parts.keys():
        problems.append("I4: the manifest names other parts than there are")
    for part in manifest["parts"]:
        there = world.objects[f"{ROOT}/{part['name']}"]
        if there.stamp["sha256"] != part["sha256"]:
            problems.append(f"I4: {part['name']} has other bytes than the manifest says")
    expected = golden(seal["generation"], records=records)
    if parts.keys() != expected.keys():
        problems.append(f"I3: {len(parts)} parts, not {len(expected)}")
    elif not salted and parts != expected:
        problems.append("I9: parts have other bytes than those of an undisturbed run")
    if manifest["rows"] != NUM_UNITS * UNIT_ROWS:
        problems.append(f"I8: {manifest['rows']} rows")
    wins = Counter(
        (process.plan8, unit)
        for process in processes
        for unit, receipt in process.receipts.items()
        if receipt.won
    )
    twice = [key for key, count in wins.items() if count > 1]
    if twice:
        problems.append(f"I5: two processes count {twice[0]} as theirs")
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Run many schedules; print what they did, and the seed of any that went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--trace", action="store_true", help="print every operation")
    chosen = parser.parse_args(arguments)
    began, deaths, writes, bad = time.perf_counter(), 0, 0, 0
    for seed in range(chosen.seed, chosen.seed + chosen.schedules):
        outcome = simulate(seed, trace=chosen.trace)
        deaths += outcome.deaths
        writes += outcome.operations
        if outcome.problems:
            bad += 1
            print(f"seed {seed}: {'; '.join(outcome.problems)}")
    seconds = time.perf_counter() - began
    print(
        f"{chosen.schedules:,} schedules, {deaths:,} deaths, {writes:,} writes, {bad} mismatches, "
        f"{seconds:.0f} s ({chosen.schedules / seconds * 60:,.0f} a minute)"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
