"""What nobody needs any more: found by rules that spare everything a run could still want.

Ages are told by the store's own clock: two times that it wrote down itself are compared.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.crash import crash_point
from batchinfer.errors import NoInputError
from batchinfer.runner.finish import files_of
from batchinfer.runner.inspection import read_manifest
from batchinfer.runner.ledger import ledger_of, plan_of
from batchinfer.runner.output import below, generations, plan_name, read_plan, read_seal
from batchinfer.runner.presence import Beat, beats, died_here
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.storage import Store

_ADVISORY = ("claims", "hb", "suspect", "spill")
_PROBES = ("_batchinfer/probe-", "_batchinfer/clock/")
_QUIET_S = 600.0
"""Ten times as long as a process may be silent before others take it for dead."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """One object that may go, and why."""

    uri: str
    size_bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What `gc` would delete, and what it spares although it looks superfluous."""

    garbage: tuple[Garbage, ...]
    spared: tuple[str, ...]


def find_garbage(root: str, options: Mapping[str, Any]) -> tuple[Store, Findings]:
    """List an output, and say what may go. Deletes nothing but its own look at the store's clock.

    Raises NoInputError where there is no output, DataError where its control files are damaged.
    """
    store = open_store(root, options)
    entries = store.entries(root)
    numbers = generations(entries, root)
    if not numbers:
        raise NoInputError("no batchinfer output is here", where=root, hint="name the job's output.path")
    now = _store_clock(store, root)
    spared: list[str] = []
    garbage = list(_of_live_plan(store, root, entries, numbers[-1]))
    sealed = read_seal(store, root)
    if sealed is not None:
        manifest = read_manifest(store, root, sealed)
        kept, replaced = frozenset(manifest["plans"]), frozenset(manifest["replaced"])
        garbage += _replaced(root, entries, replaced)
        names = {number: plan_name(store, root, number) for number in numbers if number <= sealed.generation}
        for number, plan8 in names.items():
            if plan8 in kept:
                garbage += _advisory(root, entries, plan8, f"generation {number} is complete")
                garbage += _unnamed(root, entries, plan8, files_of(manifest).keys() | replaced)
            elif any(_may_live(beat, now) for beat in beats(entries, root, plan8)):
                spared.append(f"generation {number} is superseded, but a process of it was just alive")
            else:
                garbage += _superseded(root, entries, plan8, f"generation {number} is superseded")
    garbage += [
        Garbage(entry.uri, entry.size_bytes, "a look at the store that was never cleared away")
        for entry in entries
        if below(root, entry.uri).startswith(_PROBES) and now - entry.modified > _QUIET_S
    ]
    garbage += [
        Garbage(entry.uri, entry.size_bytes, "a write that was never finished")
        for entry in store.leftovers(root, now=now)
    ]
    unique = {item.uri: item for item in garbage}
    return store, Findings(tuple(unique.values()), tuple(spared))


def sweep(store: Store, garbage: Sequence[Garbage]) -> None:
    """Delete. Stopped half-way, the next call finds the rest."""
    for index, item in enumerate(garbage):
        crash_point("gc.before_delete")
        store.delete(item.uri)
        if index == 0:
            crash_point("gc.after_first_delete")


def _may_live(beat: Beat, now: float) -> bool:
    """Tell whether the process of a heartbeat may still be at work."""
    return now - beat.modified < _QUIET_S and not died_here(beat.owner)


def _of_live_plan(store: Store, root: str, entries: Sequence[Entry], number: int) -> Iterator[Garbage]:
    """Yield what was put aside for units that are committed by now. Nothing of any other unit."""
    layout = read_plan(store, root, number).layout(root)
    committed = ledger_of(entries, layout).committed
    folders = tuple(layout.spill_folder(unit) + "/" for unit in committed)
    if not folders:
        return
    for entry in entries:
        if below(root, entry.uri).startswith(folders):
            yield Garbage(entry.uri, entry.size_bytes, "its unit is committed")


def _advisory(root: str, entries: Sequence[Entry], plan8: str, why: str) -> Iterator[Garbage]:
    """Yield the claims, heartbeats and the like of a plan that is complete."""
    folders = tuple(f"_batchinfer/{plan8}/{folder}/" for folder in _ADVISORY)
    for entry in entries:
        if below(root, entry.uri).startswith(folders):
            yield Garbage(entry.uri, entry.size_bytes, why)


def _replaced(root: str, entries: Sequence[Entry], names: Collection[str]) -> Iterator[Garbage]:
    """Yield the files in whose place a retry has put others."""
    for entry in entries:
        if below(root, entry.uri) in names:
            yield Garbage(entry.uri, entry.size_bytes, "a retry has replaced it")


def _unnamed(root: str, entries: Sequence[Entry], plan8: str, files: Collection[str]) -> Iterator[Garbage]:
    """Yield the tables of failed rows of a complete plan that no commit names: those of attempts that came
    second. Of a plan that is not complete, somebody may be about to name one."""
    for entry in entries:
        name = below(root, entry.uri)
        if name.startswith(f"_batchinfer/{plan8}/errors/") and name not in files:
            yield Garbage(entry.uri, entry.size_bytes, "an attempt that came second has left it")


def _superseded(root: str, entries: Sequence[Entry], plan8: str, why: str) -> Iterator[Garbage]:
    """Yield the parts of a plan, then all else that it has."""
    mine = [entry for entry in entries if plan_of(below(root, entry.uri)) == plan8]
    control = [entry for entry in entries if below(root, entry.uri).startswith(f"_batchinfer/{plan8}/")]
    for entry in (*mine, *control):
        yield Garbage(entry.uri, entry.size_bytes, why)


def _store_clock(store: Store, root: str) -> float:
    """Return what time it is for the store: when it says that it wrote something just now."""
    folder = f"{root.rstrip('/')}/_batchinfer/clock"
    uri = f"{folder}/{secrets.token_hex(4)}"
    store.put(uri, b"now")
    try:
        return next((entry.modified for entry in store.entries(folder) if entry.uri == uri), 0.0)
    finally:
        store.delete(uri)
