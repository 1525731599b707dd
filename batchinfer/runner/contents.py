"""What an output consists of at this moment: the files that count, also while a run is under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer.runner.finish import MANIFEST_KEYS, files_of, manifest_name
from batchinfer.runner.inspection import sink_of
from batchinfer.runner.ledger import ledger_of, unit_of
from batchinfer.runner.output import below, read_control
from batchinfer.runner.sidecars import sidecar_named

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store


@dataclass(frozen=True, slots=True)
class Files:
    """Names of the parts and of the tables of failed rows, sorted."""

    parts: tuple[str, ...]
    sidecars: tuple[str, ...]


def files_there(store: Store, root: str, entries: Sequence[Entry], plan: Plan) -> Files:
    """Return the files that count: those of a plan, and those that it keeps of its parent.

    Of a complete plan they are the manifest's. Raises DataError where a control file is damaged.
    """
    layout = plan.layout(root)
    names = {below(root, entry.uri) for entry in entries}
    if manifest_name(plan.plan8) in names:
        return _listed(store, layout.uri(manifest_name(plan.plan8)))
    ledger = ledger_of(entries, layout)
    parts: dict[int, list[str]] = {}
    for name in ledger.parts:
        parts.setdefault(unit_of(name), []).append(name)
    written = {unit_of(name) for name in ledger.sidecars} & ledger.committed
    sink = sink_of(plan)
    named = [sidecar_named(store, layout, parts[unit][0], sink) for unit in sorted(written)]
    kept = Files((), ())
    if plan.parent is not None:
        kept = _listed(store, layout.uri(manifest_name(plan.parent)))
    gone = set() if plan.retry is None else plan.retry.replaced_by(ledger.committed)
    mine = [name for unit, some in parts.items() if unit in ledger.committed for name in some]
    return Files(
        tuple(sorted({*kept.parts, *mine} - gone)),
        tuple(sorted({*kept.sidecars, *filter(None, named)} - gone)),
    )


def _listed(store: Store, uri: str) -> Files:
    manifest = read_control(store, uri, "manifest", *MANIFEST_KEYS)
    apart = {sidecar["name"] for sidecar in manifest["sidecars"]}
    return Files(tuple(sorted(files_of(manifest).keys() - apart)), tuple(sorted(apart)))
