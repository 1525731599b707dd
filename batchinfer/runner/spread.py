"""A few rows that stand for all: pieces that lie evenly over the units of a plan."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from batchinfer.data import Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchinfer.runner.plan import Plan


def spread(plan: Plan, num_rows: int, *, pieces: int, units: Sequence[int] | None = None) -> list[Unit]:
    """Return about so many rows of some units (of all, by default) as so many units of their own, numbered
    from 0: each begins a stratum of the rows, and ends with the unit that it is a piece of. All of them where
    there are no more."""
    chosen = [plan.unit(index) for index in (range(len(plan.units)) if units is None else units)]
    ends = list(accumulate(unit.num_rows for unit in chosen))
    total = ends[-1] if ends else 0
    if total <= num_rows:
        return [replace(unit, index=index) for index, unit in enumerate(chosen)]
    pieces = max(1, min(pieces, num_rows, total))
    each = -(-num_rows // pieces)
    found: list[Unit] = []
    for piece in range(pieces):
        at = piece * total // pieces
        unit = chosen[which := bisect_right(ends, at)]
        start = unit.start + at - (ends[which] - unit.num_rows)
        stop = min(start + each, unit.stop)
        found.append(Unit(index=len(found), shard=unit.shard, start=start, stop=stop))
    return found
