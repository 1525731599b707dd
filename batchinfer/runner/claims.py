"""Who does which block of units, where several processes share a run and nobody deals.

A claim is an object that can be created once; a block whose owner shows no sign of life is claimed
again, one epoch higher. Nothing rests on it but saved work: a unit that two processes do is still
published once.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.crash import crash_point
from batchinfer.engine.publish import create_once
from batchinfer.runner.output import below, control
from batchinfer.storage import ObjectMissing

if TYPE_CHECKING:
    from batchinfer.clock import Clock
    from batchinfer.data import Entry
    from batchinfer.storage import Store

_CLAIM = re.compile(r"claims/(\d+)/(\d+)\.json")
_BEAT = re.compile(r"hb/([^/]+)\.(json|gone)")
_MAX_BLOCK_UNITS = 8
_BLOCKS_WANTED = 64
_BEATS_TO_DIE = 4
"""A process that misses so many heartbeats is taken for dead."""


def blocks_of(num_units: int) -> list[range]:
    """Cut the units into blocks: the same for every process, because it follows from the plan."""
    size = min(max(num_units // _BLOCKS_WANTED, 1), _MAX_BLOCK_UNITS)
    return [range(start, min(start + size, num_units)) for start in range(0, num_units, size)]


@dataclass(slots=True)
class _Claim:
    """The newest claim on a block, as this process knows it. `owner` is empty until it is read."""

    epoch: int
    seen_at: float
    owner: str = ""


@dataclass(slots=True)
class _Sign:
    """What a peer last showed, and when, on our clock, it last showed something new."""

    version: str
    changed_at: float


class Claims:
    """This process's view of the claims. Every method talks to the store and may raise its errors."""

    def __init__(
        self, store: Store, root: str, plan8: str, *, owner: str, num_units: int, every_s: float, clock: Clock
    ) -> None:
        self._store = store
        self._base = f"{root.rstrip('/')}/_batchinfer/{plan8}"
        self._owner = owner
        self._ttl_s = _BEATS_TO_DIE * every_s
        self._clock = clock
        self._claims: dict[int, _Claim] = {}
        self._signs: dict[str, _Sign] = {}
        self._gone: set[str] = set()
        self.blocks = blocks_of(num_units)
        # Processes begin at different blocks, so that they rarely want the same one.
        start = zlib.crc32(owner.encode()) % max(len(self.blocks), 1)
        self._order: list[int] = [*range(start, len(self.blocks)), *range(start)]

    def look(self) -> None:
        """See who claimed what, and who still moves: two listings."""
        now = self._clock.now()
        for entry in self._store.entries(f"{self._base}/claims"):
            self._see_claim(entry, now)
        for entry in self._store.entries(f"{self._base}/hb"):
            self._see_beat(entry, now)

    def claim(self, committed: Iterable[int]) -> int | None:
        """Claim a block that is unfinished and nobody's, or a dead owner's; None where there is none."""
        done = frozenset(committed)
        for block in self._order:
            held = self._claims.get(block)
            if done.issuperset(self.blocks[block]) or (held and self._is_held(held, block)):
                continue
            epoch = held.epoch + 1 if held else 1
            crash_point("claim.before")
            won = create_once(self._store, self._uri(block, epoch), control(owner=self._owner))
            crash_point("claim.after")
            # Lost: whoever was first owns it, and is read when it matters.
            owner = self._owner if won else ""
            self._claims[block] = _Claim(epoch, self._clock.now(), owner)
            if won:
                return block
        return None

    def held_by_others(self, committed: Iterable[int]) -> list[int]:
        """Return the unfinished blocks of peers that seem alive."""
        done = frozenset(committed)
        return [
            block
            for block in self._order
            if (claim := self._claims.get(block)) and claim.owner != self._owner
            if not done.issuperset(self.blocks[block])
        ]

    def _is_held(self, claim: _Claim, block: int) -> bool:
        """Tell whether a claim's owner may be alive, judged by what we saw on our own clock."""
        if claim.owner == self._owner:
            return True
        if not claim.owner:
            claim.owner = self._read_owner(block, claim.epoch)
        if claim.owner in self._gone:
            return False
        sign = self._signs.get(claim.owner)
        since = sign.changed_at if sign else claim.seen_at
        return self._clock.now() - since <= self._ttl_s

    def _read_owner(self, block: int, epoch: int) -> str:
        try:
            return str(json.loads(self._store.read(self._uri(block, epoch)))["owner"])
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return "?"  # torn or foreign: nobody gives a sign under this name, so its time runs out

    def _see_claim(self, entry: Entry, now: float) -> None:
        found = _CLAIM.fullmatch(below(self._base, entry.uri))
        if found is None:
            return
        block, epoch = int(found[1]), int(found[2])
        known = self._claims.get(block)
        if known is None or known.epoch < epoch:
            self._claims[block] = _Claim(epoch, now)

    def _see_beat(self, entry: Entry, now: float) -> None:
        found = _BEAT.fullmatch(below(self._base, entry.uri))
        if found is None:
            return
        if found[2] == "gone":
            self._gone.add(found[1])
            return
        sign = self._signs.get(found[1])
        if sign is None or sign.version != entry.version:
            self._signs[found[1]] = _Sign(entry.version, now)

    def _uri(self, block: int, epoch: int) -> str:
        return f"{self._base}/claims/{block:05d}/{epoch:04d}.json"


def units_of(blocks: Sequence[range], chosen: Iterable[int]) -> list[int]:
    """Return the units of some blocks, in order."""
    return [unit for block in chosen for unit in blocks[block]]
