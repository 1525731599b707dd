"""A place for a worker, as the supervisor keeps it: who is there now, and what it has in hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchinfer.runner.process import LineTail

if TYPE_CHECKING:
    from batchinfer.data import Unit
    from batchinfer.engine.blackbox import Entry, Stage
    from batchinfer.runner.memory_guard import MemoryGuard
    from batchinfer.runner.messages import Failed, Start
    from batchinfer.runner.process import Worker
    from batchinfer.runner.watchdog import Watchdog

_UNITS_AHEAD = 2
_AHEAD_S = 1.0
_MOST_UNITS = 16
_MOST_COMMITTING = 16
_MEASURE_S = 1.0


@dataclass(slots=True)
class Member:
    """One place for a worker: the worker that is there now, and its history."""

    index: int
    start: Start
    worker: Worker
    watchdog: Watchdog
    guard: MemoryGuard
    deaths: int = 0
    assigned: dict[int, Unit] = field(default_factory=dict)
    computed: set[int] = field(default_factory=set)
    tail: LineTail = field(default_factory=LineTail)
    ready: bool = False
    stopping: bool = False
    retiring: bool = False
    failure: Failed | None = None
    stalled_at: float | None = None
    killed: bool = False
    no_memory: str = ""
    """How it was ended for want of memory, if so."""
    in_hand: list[Entry] = field(default_factory=list)
    passed: frozenset[Stage] = frozenset()
    ready_at: float = 0.0
    committed: int = 0
    measured_at: float = 0.0

    def may_measure(self, now: float) -> bool:
        """Tell whether its memory may be looked at again, and note that it is: once a second, and after its
        first unit."""
        if self.committed > 1 and now - self.measured_at < _MEASURE_S:
            return False
        self.measured_at = now
        return True

    @property
    def is_leaving(self) -> bool:
        """Whether it must get no more units."""
        return self.stopping or self.retiring or self.killed or bool(self.no_memory)

    @property
    def num_to_compute(self) -> int:
        """Units that it has and that are not yet being committed: a slow store must not keep it waiting. So
        many may be under way there that they are done within a grace period."""
        return len(self.assigned) - min(len(self.computed), _MOST_COMMITTING)

    def units_at_once(self, now: float) -> int:
        """Return how many units it should have: one, which is read while the model is loaded; then two more
        than it works on, and of short ones as many as it does in a second, which a far store is asked for."""
        if not self.ready:
            return 1
        per_second = self.committed / max(now - self.ready_at, _AHEAD_S)
        return min(_UNITS_AHEAD + 1 + int(per_second * _AHEAD_S), _MOST_UNITS)


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A place whose worker died, until another starts there at `due`."""

    index: int
    start: Start
    deaths: int
    due: float
