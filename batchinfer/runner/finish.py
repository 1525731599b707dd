"""The end of a run: the manifest, a pure function of the parts, and then `_SUCCESS`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchinfer.crash import crash_point
from batchinfer.data import PartFile, Receipt
from batchinfer.engine.commit import FORMAT_VERSION, OutputLayout, describe_part
from batchinfer.engine.publish import create_once
from batchinfer.errors import BatchinferError, DataError, FingerprintError
from batchinfer.runner.ledger import Ledger, read_ledger
from batchinfer.runner.output import read_control, seal
from batchinfer.runner.sidecars import describe_sidecars
from batchinfer.storage import AlreadyExists

if TYPE_CHECKING:
    from batchinfer.protocols import Sink
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store
MANIFEST_KEYS = ("parts", "sidecars", "replaced", "plans", "rows", "rows_error", "rows_planned")


def manifest_name(plan8: str) -> str:
    """Return where a plan's manifest is, relative to the root."""
    return f"_batchinfer/{plan8}/manifest.json"


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as it is stored."""
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def finish(
    store: Store,
    layout: OutputLayout,
    plan: Plan,
    sink: Sink,
    receipts: Mapping[int, Receipt],
    *,
    is_whole: bool,
) -> dict[str, Any]:
    """Write the manifest and `_SUCCESS` if every unit is committed; return the manifest.

    Whoever does it writes the same bytes, so several may. `is_whole` says that the job leaves no row out.
    Raises DataError where a part is gone, FingerprintError where a later generation has taken this one's
    place.
    """
    ledger = read_ledger(store, layout)
    crash_point("final.list")
    missing = set(range(layout.num_units)) - ledger.committed
    if missing:
        raise DataError(
            f"unit {min(missing)} was committed and is gone",
            where=layout.root,
            hint="run the same command again: it is computed anew",
        )
    mine = {part.name: part for receipt in receipts.values() if receipt.won for part in receipt.parts}
    sidecars = describe_sidecars(store, layout, ledger, sink, receipts)
    manifest = _manifest(store, layout, plan, _described(store, layout, ledger, sink, mine), sidecars)
    _require_kept(layout, manifest, ledger)
    if is_whole and manifest["rows"] != manifest["rows_planned"]:
        raise BatchinferError(
            f"the parts hold {manifest['rows']} of {manifest['rows_planned']} rows: none was to be left out",
            where=layout.root,
        )
    mine |= {receipt.sidecar.name: receipt.sidecar for receipt in receipts.values() if receipt.sidecar}
    data = manifest_bytes(manifest)
    crash_point("final.manifest.before")
    _store_manifest(store, layout, manifest, data, mine)
    crash_point("final.manifest.after")
    crash_point("final.success.before")
    facts = {"rows": manifest["rows"], "rows_error": manifest["rows_error"]}
    if not seal(store, layout.root, plan, data, facts):
        raise FingerprintError(
            "a later run with --force has taken this one's place",
            where=layout.root,
            hint="nothing to do: the output is the later run's",
        )
    crash_point("final.success.after")
    return manifest


def _require_kept(layout: OutputLayout, manifest: Mapping[str, Any], ledger: Ledger) -> None:
    """Raise DataError where a part that is kept of an earlier plan is gone."""
    there = {*ledger.parts, *ledger.others}
    gone = sorted(part["name"] for part in manifest["parts"] if part["name"] not in there)
    if gone:
        raise DataError(
            f"{len(gone)} parts that were kept of an earlier run are gone",
            where=layout.uri(gone[0]),
            hint="restore them, or compute all anew with `run --force`",
        )


def _manifest(
    store: Store, layout: OutputLayout, plan: Plan, parts: list[PartFile], sidecars: list[PartFile]
) -> dict[str, Any]:
    """Put together what the output consists of: this plan's files, and those that it keeps."""
    described, apart = [asdict(part) for part in parts], [asdict(sidecar) for sidecar in sidecars]
    plans, rows_planned, replaced = [plan.plan8], plan.num_rows, list[str]()
    if plan.parent is not None:
        before = read_control(store, layout.uri(manifest_name(plan.parent)), "manifest", *MANIFEST_KEYS)
        gone = plan.retry.replaced if plan.retry is not None else frozenset()
        kept = [[file for file in before[key] if file["name"] not in gone] for key in ("parts", "sidecars")]
        described = sorted([*kept[0], *described], key=lambda part: str(part["name"]))
        apart = sorted([*kept[1], *apart], key=lambda sidecar: str(sidecar["name"]))
        plans = [*before["plans"], *plans]
        # What a retry does again is planned already.
        rows_planned = before["rows_planned"] + (plan.num_rows if plan.retry is None else 0)
        replaced = sorted({*before["replaced"], *gone})
    return {
        "format": FORMAT_VERSION,
        "generation": plan.generation,
        "plan": plan.plan8,
        "plans": plans,
        "job": plan.job,
        "fingerprint": plan.fingerprint,
        "rows_planned": rows_planned,
        "rows": sum(file["num_rows"] for file in (*described, *apart)),
        "rows_error": sum(file["num_errors"] for file in (*described, *apart)),
        "parts": described,
        "sidecars": apart,
        "replaced": replaced,
    }


def rows_kept(store: Store, layout: OutputLayout, plan: Plan) -> int:
    """Return the planned rows of the parts that a plan keeps of its parent."""
    if plan.parent is None:
        return 0
    before = read_control(store, layout.uri(manifest_name(plan.parent)), "manifest", *MANIFEST_KEYS)
    return int(before["rows_planned"]) - (plan.num_rows if plan.retry is not None else 0)


def files_of(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parts and the tables of failed rows that a manifest lists, by name."""
    return {file["name"]: file for file in (*manifest["parts"], *manifest["sidecars"])}


def _store_manifest(
    store: Store,
    layout: OutputLayout,
    manifest: Mapping[str, Any],
    data: bytes,
    mine: Mapping[str, PartFile],
) -> None:
    """Create the manifest. One that is there must agree, but for parts that were lost and that this
    run has just computed again. Raises DataError for any other difference."""
    uri = layout.uri(manifest_name(layout.plan8))
    while not create_once(store, uri, data):
        version = next((entry.version for entry in store.glob(uri) if entry.uri == uri), "")
        there = files_of(read_control(store, uri, "manifest", *MANIFEST_KEYS))
        here = files_of(manifest)
        differing = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        stranger = next((name for name in differing if name not in mine), None)
        if stranger is not None:
            raise DataError(
                f"the manifest that is there does not agree with {stranger}",
                where=uri,
                hint="delete that part's file and run the same command again: it is computed anew",
            )
        try:
            store.replace(uri, data, version=version)
        except AlreadyExists:
            continue
        return


def _described(
    store: Store, layout: OutputLayout, ledger: Ledger, sink: Sink, mine: Mapping[str, PartFile]
) -> list[PartFile]:
    """Describe every part, sorted by name; those of other runs by their stamps, or by reading them."""
    remote = "://" in layout.root and not layout.root.startswith("file://")

    def describe(name: str) -> PartFile:
        """Describe one part."""
        part = mine.get(name) or describe_part(store, layout, name, sink)
        return dataclasses.replace(part, etag=ledger.parts[name].version) if remote else part

    names = sorted(ledger.parts)
    if store.parallel == 1 or all(name in mine for name in names):
        return [describe(name) for name in names]
    with ThreadPoolExecutor(store.parallel) as pool:
        return list(pool.map(describe, names))
