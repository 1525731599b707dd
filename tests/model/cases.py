"""The scopes in which the correct protocol is explored: CASES at each change, WIDE ones now and then.

`at_least` tells if a scope shrinks unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.protocol import Protocol
from tests.model.variants import Unconditional, WithoutStamps
from tests.model.world import Scope


@dataclass(frozen=True, slots=True)
class Case:
    """A scope, and the way of working that is looked at in it."""

    name: str
    at_least: int
    scope: Scope
    protocol: type[Protocol] = Protocol


CASES = (
    Case(
        "3 workers, every fault",
        210_000,
        Scope(workers=3, crashes=1, lost=1, late=1, outages=1),
    ),
    Case(
        "3 workers, 2 units, crash, lost reply",
        130_000,
        Scope(workers=3, units=2, crashes=1, lost=1),
    ),
    Case("3 workers, 2 crashes, 2 lost replies", 79_000, Scope(workers=3, crashes=2, lost=2)),
    Case(
        "2 units, 2 crashes, 2 lost replies, outage",
        39_000,
        Scope(units=2, crashes=2, lost=2, outages=1),
    ),
    Case("claims, advisory", 21_000, Scope(units=2, claims=True, crashes=1, lost=1)),
    Case("a store without stamps", 22_000, Scope(units=2, crashes=1, lost=1, late=1), WithoutStamps),
    Case(
        "a store without conditional writes",
        37_000,
        Scope(workers=3, deterministic=True, crashes=1, lost=1),
        Unconditional,
    ),
    Case(
        "exact code: one output, whatever happens",
        22_000,
        Scope(units=2, deterministic=True, crashes=2, lost=1, late=1),
    ),
    Case("plans that differ, same job", 55_000, Scope(workers=3, rivals="cuts", lost=1)),
    Case("plans of other jobs", 18_000, Scope(workers=3, rivals="jobs", crashes=1, lost=2)),
    Case("spill, damage, gc", 71_000, Scope(spill=True, crashes=2, lost=1, damages=1, sweeps=True)),
    Case("records, exact code", 26_000, Scope(workers=3, parts=2, deterministic=True, crashes=1, lost=1)),
    Case(
        "records of digests, any code, gc",
        81_000,
        Scope(parts=2, digests=True, crashes=2, lost=2, outages=1, sweeps=True),
    ),
    Case(
        "records of digests, exact code",
        30_000,
        Scope(workers=3, parts=2, digests=True, deterministic=True, crashes=1, lost=1),
    ),
    Case("--force, 3 workers, gc", 180_000, Scope(workers=3, orders=("force",), sweeps=True)),
    Case(
        "--force, every fault, gc", 180_000, Scope(orders=("force",), sweeps=True, crashes=1, lost=1, late=1)
    ),
    Case(
        "--force over plans that differ, gc",
        31_000,
        Scope(orders=("force",), rivals="cuts", sweeps=True, lost=1),
    ),
    Case("--force twice, gc", 110_000, Scope(orders=("force", "force"), sweeps=True, lost=1)),
    Case("incremental, then --force, gc", 48_000, Scope(orders=("child", "force"), sweeps=True, crashes=1)),
    Case("--force, then incremental, gc", 150_000, Scope(orders=("force", "child"), sweeps=True, crashes=1)),
    Case("incremental twice, gc", 47_000, Scope(orders=("child", "child"), sweeps=True, crashes=1, lost=1)),
    Case("--force or incremental, gc", 63_000, Scope(orders=("either",), sweeps=True, crashes=1, lost=1)),
    Case("--force of a unit with spill, gc", 24_000, Scope(orders=("force",), spill=True, sweeps=True)),
)

WIDE = (
    Case(
        "--force, 3 workers, crash, lost reply, gc",
        2_500_000,
        Scope(workers=3, orders=("force",), sweeps=True, crashes=1, lost=1),
    ),
    Case(
        "--force, 2 units, every fault, gc",
        3_400_000,
        Scope(units=2, orders=("force",), sweeps=True, crashes=1, lost=1, late=1, outages=1),
    ),
    Case(
        "--force or incremental, twice, lost or late, gc",
        3_500_000,
        Scope(orders=("either", "either"), sweeps=True, lost=1, late=1),
    ),
    Case(
        "--force with records of digests, faults, gc",
        2_500_000,
        Scope(parts=2, digests=True, orders=("force",), sweeps=True, crashes=1, lost=1, late=1),
    ),
    Case(
        "--force with spill, faults, gc",
        1_600_000,
        Scope(spill=True, orders=("force",), sweeps=True, crashes=1, lost=1, damages=1),
    ),
)
