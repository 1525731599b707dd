"""Follows a run from outside, from another terminal or machine, by the listing of its output alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.errors import NoInputError
from batchinfer.runner.inspection import OutputStatus, ProcessStatus, status_of
from batchinfer.runner.ledger import committed_at
from batchinfer.runner.output import generations, read_plan
from batchinfer.runner.presence import beats, died_here, promised_s
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.runner.plan import Plan
    from batchinfer.runner.presence import Beat

_BEATS_TO_WORRY = 4


@dataclass(frozen=True, slots=True)
class Look:
    """An output at one moment. `commits` are the times, by the store's clock, at which the units of the plan
    were committed, and their rows, in order."""

    status: OutputStatus
    commits: tuple[tuple[float, int], ...]


@dataclass(slots=True)
class _Sign:
    """A heartbeat as it was seen last: what was promised, and for how long it had not changed, when."""

    version: str
    every_s: float
    silent_s: float
    seen_at: float


class Lookout:
    """Looks at an output again and again. A look is one listing; what is read besides, it reads once: the
    plan, and the first heartbeat of each process.

    Once a process was seen, its silence is measured by the changes that are seen on our own clock.
    """

    def __init__(
        self,
        root: str,
        options: Mapping[str, Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._store = open_store(root, options)
        self._clock, self._wall_clock = clock, wall_clock
        self._generation = 0
        self._plan: Plan | None = None
        self._signs: dict[str, _Sign] = {}

    def look(self) -> Look:
        """Look once. Raises NoInputError where no run has begun, and what the store raises."""
        entries = self._store.entries(self._root)
        numbers = generations(entries, self._root)
        if not numbers:
            raise NoInputError(
                "no batchinfer output is here", where=self._root, hint="name the job's output.path"
            )
        if self._plan is None or numbers[-1] != self._generation:
            self._plan = read_plan(self._store, self._root, numbers[-1])
            self._generation = numbers[-1]
        plan = self._plan
        alive = [self._process(beat, plan.plan8) for beat in beats(entries, self._root, plan.plan8)]
        status = status_of(self._store, self._root, plan, entries, alive)
        rows = [stop - start for _, start, stop in plan.units]
        times = committed_at(entries, plan.layout(self._root))
        commits = sorted((at, rows[unit]) for unit, at in times.items() if unit < len(rows))
        return Look(status, tuple(commits))

    def _process(self, beat: Beat, plan8: str) -> ProcessStatus:
        now, sign = self._clock(), self._signs.get(beat.owner)
        if sign is None:
            every_s = promised_s(self._store, self._root, plan8, beat.owner)
            silent_s = max(self._wall_clock() - beat.modified, 0.0)
            sign = self._signs[beat.owner] = _Sign(beat.version, every_s, silent_s, now)
        elif sign.version != beat.version:
            sign.version, sign.silent_s, sign.seen_at = beat.version, 0.0, now
        silent_s = sign.silent_s + now - sign.seen_at
        is_silent = silent_s > _BEATS_TO_WORRY * sign.every_s or died_here(beat.owner)
        return ProcessStatus(owner=beat.owner, silent_s=silent_s, is_silent=is_silent)
