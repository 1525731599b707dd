"""Which units are committed: read from one listing of the output, from nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.data import Entry

if TYPE_CHECKING:
    from batchinfer.engine.commit import OutputLayout
    from batchinfer.storage import Store

_PART = re.compile(r"part-(\d{5,})-of-(\d{5,})-([0-9a-f]{8})\.\w+")
_SIDECAR = re.compile(r"_batchinfer/([0-9a-f]{8})/errors/(\d{5,})-[0-9a-f]{16}\.parquet")
_RECORD = re.compile(r"_batchinfer/([0-9a-f]{8})/units/(\d{5,})\.json")


@dataclass(frozen=True, slots=True)
class Ledger:
    """What an output holds of one plan.

    `committed` are the units that are done. `parts` are the plan's files that are there, by name
    relative to the root, and `sidecars` its tables of failed rows, those of attempts that came to nothing
    included; `others` are parts of other plans, and `aliens` visible files that are no parts.
    """

    committed: frozenset[int]
    parts: dict[str, Entry]
    others: dict[str, Entry]
    aliens: tuple[str, ...]
    sidecars: dict[str, Entry]


def read_ledger(store: Store, layout: OutputLayout) -> Ledger:
    """List the output once."""
    return ledger_of(store.entries(layout.root), layout)


def committed_at(entries: Iterable[Entry], layout: OutputLayout) -> dict[int, float]:
    """Return when each unit of a plan was committed, as seconds since 1970 by the store's clock."""
    base = layout.root.rstrip("/") + "/"
    found: dict[int, float] = {}
    for entry in entries:
        name = entry.uri.removeprefix(base)
        if layout.records:
            match = _RECORD.fullmatch(name)
            of_plan = match is not None and match[1] == layout.plan8
            unit = 2
        else:
            match = None if name.startswith("_") else _PART.fullmatch(name.rpartition("/")[2])
            of_plan = match is not None and match[3] == layout.plan8
            unit = 1
        if match is not None and of_plan:
            found[int(match[unit])] = entry.modified
    return found


def ledger_of(entries: Sequence[Entry], layout: OutputLayout) -> Ledger:
    """Sort a listing of the output into the plan's parts, its commits, and what is neither."""
    committed: set[int] = set()
    parts: dict[str, Entry] = {}
    others: dict[str, Entry] = {}
    sidecars: dict[str, Entry] = {}
    aliens = []
    base = layout.root.rstrip("/") + "/"
    for entry in entries:
        name = entry.uri.removeprefix(base)
        if record := _RECORD.fullmatch(name):
            if layout.records and record[1] == layout.plan8:
                committed.add(int(record[2]))
        elif sidecar := _SIDECAR.fullmatch(name):
            if sidecar[1] == layout.plan8:
                sidecars[name] = entry
        elif any(segment.startswith(("_", ".")) for segment in name.split("/")):
            continue
        elif (part := _PART.fullmatch(name.rpartition("/")[2])) is None:
            aliens.append(name)
        elif part[3] != layout.plan8:
            others[name] = entry
        else:
            parts[name] = entry
            if not layout.records:
                committed.add(int(part[1]))
    return Ledger(frozenset(committed), parts, others, tuple(sorted(aliens)), sidecars)


def plan_of(name: str) -> str | None:
    """Return the plan that the name of a part or of a table of failed rows names."""
    if (part := _PART.fullmatch(name.rpartition("/")[2])) is not None:
        return part[3]
    sidecar = _SIDECAR.fullmatch(name)
    return sidecar[1] if sidecar else None


def unit_of(name: str) -> int:
    """Return the unit that a part's or a sidecar's name names."""
    found = _PART.fullmatch(name.rpartition("/")[2])
    if found is not None:
        return int(found[1])
    sidecar = _SIDECAR.fullmatch(name)
    assert sidecar is not None
    return int(sidecar[2])
