"""Which unit next? The answer of a process that works alone or on its share, and of one that claims."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from batchinfer.errors import FingerprintError
from batchinfer.runner.ledger import read_ledger
from batchinfer.runner.output import latest_generation

if TYPE_CHECKING:
    from batchinfer.clock import Clock
    from batchinfer.engine.commit import OutputLayout
    from batchinfer.runner.claims import Claims
    from batchinfer.runner.presence import Presence
    from batchinfer.storage import Store

_LOW_WATER = 4
_BACKUPS_AT_ONCE = 2
_LOOK_AGAIN_S = 2.0
_SECOND_BEAT_S = 1.0


class Deal(Protocol):
    """Hands out units. `take`, `give_back`, `done` and `finished` never wait; `step` may."""

    def take(self) -> int | None:
        """Return a unit to do; None where there is none at this moment."""
        ...

    def give_back(self, units: Iterable[int]) -> None:
        """Take back what a worker did not finish: it comes first again."""
        ...

    def done(self, unit: int) -> None:
        """Note that a unit is committed."""
        ...

    def finished(self) -> bool:
        """Tell whether nothing is left to hand out, now or later."""
        ...

    def step(self) -> float:
        """Talk to the store as far as it is time to; return in how many seconds to come again.

        Raises FingerprintError where a later generation has taken this one's place.
        """
        ...

    def leave(self) -> None:
        """Say goodbye to the others."""
        ...


class StaticDeal:
    """A share that is known from the start: every unit, or every n-th. Only the heartbeat is kept up."""

    def __init__(
        self,
        units: Sequence[int],
        *,
        presence: Presence,
        watch: Supersession,
        every_s: float,
        clock: Clock,
    ) -> None:
        self._todo = deque(units)
        self._in_hand: dict[int, None] = {}
        self._num_done = 0
        self._presence = presence
        self._watch = watch
        self._every_s = every_s
        self._clock = clock
        self._next_beat = 0.0
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """Return the next unit."""
        with self._lock:
            if not self._todo:
                return None
            unit = self._todo.popleft()
            self._in_hand[unit] = None
            return unit

    def give_back(self, units: Iterable[int]) -> None:
        """Put units back in front."""
        with self._lock:
            back = list(units)
            for unit in back:
                self._in_hand.pop(unit, None)
            self._todo.extendleft(reversed(back))

    def done(self, unit: int) -> None:
        """Count a unit."""
        with self._lock:
            self._in_hand.pop(unit, None)
            self._num_done += 1

    def finished(self) -> bool:
        """Tell whether every unit was handed out."""
        return not self._todo

    def step(self) -> float:
        """Beat, and look whether this plan still counts."""
        if self._clock.now() >= self._next_beat:
            # Soon again after the first, which has no unit to name yet.
            wait_s = min(self._every_s, _SECOND_BEAT_S) if self._next_beat == 0 else self._every_s
            self._next_beat = self._clock.now() + wait_s
            with self._lock:
                in_flight, num_done = list(self._in_hand), self._num_done
            self._presence.beat(in_flight=in_flight, blocks=[], done=num_done)
            self._watch.check()
        return max(self._next_beat - self._clock.now(), 0.0)

    def leave(self) -> None:
        """Remove the heartbeat."""
        self._presence.leave(claimed=False)


class LeaseDeal:
    """Blocks, claimed as they are needed; at the end, what slow peers have not finished."""

    def __init__(
        self,
        *,
        claims: Claims,
        presence: Presence,
        watch: Supersession,
        store: Store,
        layout: OutputLayout,
        committed: Iterable[int],
        every_s: float,
        clock: Clock,
        on_others: Callable[[Sequence[int]], None] = lambda _: None,
    ) -> None:
        """Begin. `on_others` hears of units that others have committed since."""
        self._claims = claims
        self._presence = presence
        self._watch = watch
        self._store = store
        self._layout = layout
        self._committed = set(committed)
        self._every_s = every_s
        self._clock = clock
        self._mine: list[int] = []
        self._todo: deque[int] = deque()
        self._taken: dict[int, None] = {}
        self._tried: set[int] = set()
        self._next_beat = self._next_look = 0.0
        self._lock = threading.Lock()
        self._on_others = on_others
        self._random = random.Random(presence.owner)  # noqa: S311 - spreads backup attempts, guards nothing

    def take(self) -> int | None:
        """Return a unit of a block of ours that nobody has committed."""
        with self._lock:
            while self._todo:
                unit = self._todo.popleft()
                if unit not in self._committed and unit not in self._taken:
                    self._taken[unit] = None
                    return unit
            return None

    def give_back(self, units: Iterable[int]) -> None:
        """Put units back in front."""
        with self._lock:
            back = list(units)
            for unit in back:
                self._taken.pop(unit, None)
            self._todo.extendleft(reversed(back))

    def done(self, unit: int) -> None:
        """Note a unit."""
        with self._lock:
            self._committed.add(unit)
            self._taken.pop(unit, None)

    def finished(self) -> bool:
        """Tell whether every unit of the plan is committed, as far as we saw."""
        with self._lock:
            return len(self._committed) >= self._layout.num_units

    def step(self) -> float:
        """Beat; claim another block when ours run out; at the end, help the slow."""
        now = self._clock.now()
        if now >= self._next_beat:
            self._next_beat = now + self._every_s
            self._beat()
        if not self.finished() and self._runs_low() and now >= self._next_look:
            self._find_work()
        wait_s = self._next_beat - self._clock.now()
        if self._runs_low() and not self.finished():
            wait_s = min(wait_s, self._next_look - self._clock.now())
        return max(wait_s, 0.0)

    def leave(self) -> None:
        """Say that nobody need wait for this process."""
        self._presence.leave(claimed=True)

    def _beat(self) -> None:
        with self._lock:
            in_flight, num_done = list(self._taken), len(self._committed)
        self._presence.beat(in_flight=in_flight, blocks=self._mine, done=num_done)
        self._watch.check()

    def _runs_low(self) -> bool:
        with self._lock:
            return len(self._todo) < _LOW_WATER

    def _find_work(self) -> None:
        """Claim a block; where all are held, try again what their holders have not finished."""
        self._claims.look()
        block = self._claims.claim(self._committed)
        if block is not None:
            self._mine.append(block)
            self._refresh()  # its last owner may have finished some of it
            self._add(self._claims.blocks[block])
            self._beat()
            return
        self._next_look = self._clock.now() + min(_LOOK_AGAIN_S, self._every_s)
        with self._lock:
            idle = not self._todo and not self._taken
        if idle:
            self._refresh()
            self._add(self._backups())

    def _backups(self) -> list[int]:
        """Choose units of peers that are late. Doing them twice is harmless: one is published."""
        others = self._claims.held_by_others(self._committed)
        late = [
            unit
            for block in others
            for unit in self._claims.blocks[block]
            if unit not in self._committed and unit not in self._tried
        ]
        chosen = self._random.sample(late, min(_BACKUPS_AT_ONCE, len(late)))
        self._tried.update(chosen)
        return sorted(chosen)

    def _refresh(self) -> None:
        """List what is committed by now."""
        committed = read_ledger(self._store, self._layout).committed
        with self._lock:
            # What we are at as well is ours once we are done.
            others = sorted(committed - self._committed - self._taken.keys())
            self._committed |= committed
        if others:
            self._on_others(others)

    def _add(self, units: Iterable[int]) -> None:
        with self._lock:
            self._todo.extend(unit for unit in units if unit not in self._committed)


class Supersession:
    """Notices that `--force` began a later generation: what this process does is not wanted any more."""

    def __init__(self, store: Store, root: str, generation: int) -> None:
        self._store = store
        self._root = root
        self._generation = generation

    def check(self) -> None:
        """Raise FingerprintError where there is a later generation."""
        if latest_generation(self._store, self._root) > self._generation:
            raise FingerprintError(
                "a later run with --force has taken this one's place",
                where=self._root,
                hint="nothing to do: the output is the later run's",
            )
