"""The end of a run: the manifest, a pure function of the parts, and then `_SUCCESS`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchinfer.data import PartFile, Receipt
from batchinfer.engine.commit import FORMAT_VERSION, OutputLayout, describe_part
from batchinfer.engine.publish import create_once, sha256
from batchinfer.errors import DataError
from batchinfer.runner.ledger import Ledger, read_ledger

if TYPE_CHECKING:
    from batchinfer.protocols import Sink
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store

_READS_AT_ONCE = 8


def finish(
    store: Store, layout: OutputLayout, plan: Plan, sink: Sink, receipts: Mapping[int, Receipt]
) -> dict[str, Any]:
    """Write the manifest and `_SUCCESS` if every unit is committed; return the manifest.

    Whoever does it writes the same bytes, so several may. Raises DataError where a part is gone.
    """
    ledger = read_ledger(store, layout)
    missing = set(range(layout.num_units)) - ledger.committed
    if missing:
        raise DataError(
            f"unit {min(missing)} was committed and is gone",
            where=layout.root,
            hint="run the same command again: it is computed anew",
        )
    known = {part.name: part for receipt in receipts.values() if receipt.won for part in receipt.parts}
    parts = describe_parts(store, layout, ledger, sink, known)
    manifest = {
        "format": FORMAT_VERSION,
        "plan": layout.plan8,
        "job": plan.job,
        "fingerprint": plan.fingerprint,
        "rows": sum(part.num_rows for part in parts),
        "rows_error": sum(part.num_errors for part in parts),
        "parts": [asdict(part) for part in parts],
    }
    data = json.dumps(manifest, indent=1, sort_keys=True).encode()
    uri = layout.uri(f"_batchinfer/{layout.plan8}/manifest.json")
    if not create_once(store, uri, data):
        raise DataError(
            "the manifest that is there does not agree with the parts",
            where=uri,
            hint="run `batchinfer verify` on the output: it names the part that changed",
        )
    seal = {
        "format": FORMAT_VERSION,
        "plan": layout.plan8,
        "manifest": f"_batchinfer/{layout.plan8}/manifest.json",
        "manifest_sha256": sha256(data),
        "rows": manifest["rows"],
        "rows_error": manifest["rows_error"],
    }
    store.put(layout.uri("_SUCCESS"), json.dumps(seal, indent=1, sort_keys=True).encode())
    return manifest


def describe_parts(
    store: Store, layout: OutputLayout, ledger: Ledger, sink: Sink, known: Mapping[str, PartFile]
) -> list[PartFile]:
    """Describe every part, sorted by name; those of earlier runs are read back and counted."""

    def describe(name: str) -> PartFile:
        """Describe one part."""
        if name in known:
            return known[name]
        return describe_part(store, layout, name, sink)

    return _in_threads(describe, sorted(ledger.parts))


def _in_threads(function: Any, items: Iterable[str]) -> list[PartFile]:
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return list(pool.map(function, items))
