"""Claims are judged by what their observer sees change, on its own clock."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from batchinfer.runner.claims import Claims, blocks_of
from batchinfer.runner.presence import Presence
from batchinfer.storage import Store, open_store

PLAN = "0123abcd"
EVERY_S = 15.0
TTL_S = 4 * EVERY_S
_spaces = itertools.count()


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        """Return its time."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds


def world() -> tuple[Store, str]:
    """Return a store of its own."""
    root = f"memory://claims-{next(_spaces)}/out"
    return open_store(root, {}), root


def process(store: Store, root: str, name: str, *, num_units: int = 4) -> tuple[Claims, Presence, HandClock]:
    """Return a process's claims, heartbeat and clock."""
    clock, owner = HandClock(), f"any-far{name}-1-{name}"
    claims = Claims(store, root, PLAN, owner=owner, num_units=num_units, every_s=EVERY_S, clock=clock)
    return claims, Presence(store, root, PLAN, owner), clock


@given(st.integers(1, 5000))
def test_blocks_cover_every_unit_once(num_units: int) -> None:
    """Blocks are disjoint, in order, complete, and the same for everybody."""
    blocks = blocks_of(num_units)
    assert [unit for block in blocks for unit in block] == list(range(num_units))
    assert blocks == blocks_of(num_units)
    assert max(map(len, blocks)) <= 8


def test_every_block_has_one_owner() -> None:
    """Two processes that claim in turn never get the same block."""
    store, root = world()
    one, _, _ = process(store, root, "one", num_units=64)
    two, _, _ = process(store, root, "two", num_units=64)
    got: list[int] = []
    while True:
        for claims in (one, two):
            claims.look()
        found = [claims.claim(()) for claims in (one, two)]
        if found == [None, None]:
            break
        got += [block for block in found if block is not None]
    assert sorted(got) == list(range(len(one.blocks)))


def test_a_live_owner_is_left_alone() -> None:
    """As long as a peer's heartbeat changes, its block is its own, however long it takes."""
    store, root = world()
    one, presence, _ = process(store, root, "one", num_units=1)
    two, _, clock = process(store, root, "two", num_units=1)
    assert one.claim(()) == 0
    for _ in range(100):
        presence.beat(in_flight=[], blocks=[0], done=0)
        clock.sleep(EVERY_S)
        two.look()
        assert two.claim(()) is None


def test_a_dead_owner_is_succeeded_in_time() -> None:
    """A block whose owner gives no sign is claimed again within 90 seconds, and not before 60."""
    store, root = world()
    one, presence, _ = process(store, root, "one", num_units=1)
    two, _, clock = process(store, root, "two", num_units=1)
    assert one.claim(()) == 0
    presence.beat(in_flight=[0], blocks=[0], done=0)
    two.look()
    began = clock.now()
    while two.claim(()) is None:
        clock.sleep(EVERY_S)
        two.look()
    assert TTL_S < clock.now() - began <= 90


def test_an_owner_that_never_gave_a_sign() -> None:
    """A claim without any heartbeat counts from when it was first seen."""
    store, root = world()
    one, _, _ = process(store, root, "one", num_units=1)
    two, _, clock = process(store, root, "two", num_units=1)
    assert one.claim(()) == 0
    two.look()
    clock.sleep(TTL_S - 1)
    two.look()
    assert two.claim(()) is None
    clock.sleep(2)
    two.look()
    assert two.claim(()) == 0


def test_who_leaves_is_succeeded_at_once() -> None:
    """A process that took its leave is not waited for."""
    store, root = world()
    one, presence, _ = process(store, root, "one", num_units=1)
    two, _, _ = process(store, root, "two", num_units=1)
    assert one.claim(()) == 0
    presence.beat(in_flight=[], blocks=[0], done=0)
    presence.leave(claimed=True)
    two.look()
    assert two.claim(()) == 0


def test_clocks_of_others_do_not_matter() -> None:
    """An hour's difference between machines, and a day's sleep of the observer, steal and stick nothing."""
    store, root = world()
    one, presence, ahead = process(store, root, "one", num_units=1)
    two, _, clock = process(store, root, "two", num_units=1)
    ahead.time += 3600
    assert one.claim(()) == 0
    presence.beat(in_flight=[], blocks=[0], done=0)
    two.look()
    clock.sleep(EVERY_S)
    ahead.time -= 7200  # set back
    presence.beat(in_flight=[], blocks=[0], done=0)
    two.look()
    assert two.claim(()) is None
    clock.sleep(24 * 3600)  # everybody was away: the first look after it sees a change, or none
    presence.beat(in_flight=[], blocks=[0], done=0)
    two.look()
    assert two.claim(()) is None


def test_all_were_dead_for_a_day() -> None:
    """The only one to come back claims what the dead had, after it has watched them for a while."""
    store, root = world()
    one, presence, _ = process(store, root, "one", num_units=4)
    while one.claim(()) is not None:
        presence.beat(in_flight=[], blocks=[], done=0)
    late, _, clock = process(store, root, "late", num_units=4)
    late.look()
    assert late.claim(()) is None
    clock.sleep(TTL_S + 1)
    late.look()
    got = set()
    while (block := late.claim(())) is not None:
        got.add(block)
    assert got == {0, 1, 2, 3}


def test_finished_blocks_are_nobodys() -> None:
    """A block whose units are all committed is not claimed."""
    store, root = world()
    one, _, _ = process(store, root, "one", num_units=4)
    assert {one.claim({0, 1, 2}), one.claim({0, 1, 2})} == {3, None}


def test_a_torn_claim_runs_out() -> None:
    """A claim that cannot be read is nobody's sign of life: it ends with its time."""
    store, root = world()
    store.put(f"{root}/_batchinfer/{PLAN}/claims/00000/0001.json", b'{"own')
    one, _, clock = process(store, root, "one", num_units=1)
    one.look()
    assert one.claim(()) is None
    clock.sleep(TTL_S + 1)
    one.look()
    assert one.claim(()) == 0
