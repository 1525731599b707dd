"""The tables of failed rows beside the parts: which of them a unit's commit names, and what is in them."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from batchinfer.engine.commit import describe_part
from batchinfer.engine.sidecar import SIDECAR, sidecar_sink
from batchinfer.errors import DataError
from batchinfer.runner.ledger import Ledger, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchinfer.data import PartFile, Receipt
    from batchinfer.engine.commit import OutputLayout
    from batchinfer.protocols import Sink
    from batchinfer.storage import Store


def sidecar_named(store: Store, layout: OutputLayout, part: str, sink: Sink) -> str:
    """Return the table of failed rows that a committed unit's part names, in its stamp or its metadata. Empty
    where it names none. Raises DataError where the part is damaged."""
    uri = layout.uri(part)
    stamp = store.stamp(uri)
    if "sha256" in stamp:
        return stamp.get("sidecar", "")
    with store.open(uri) as file:
        return sink.footer(file).get(SIDECAR, "")


def describe_sidecars(
    store: Store, layout: OutputLayout, ledger: Ledger, sink: Sink, receipts: Mapping[int, Receipt]
) -> list[PartFile]:
    """Describe the tables of failed rows that committed units name, sorted by name.

    Those of other attempts, which no commit names, are left out. Raises DataError where one is missing.
    """
    remote = "://" in layout.root and not layout.root.startswith("file://")
    part_of = {unit_of(name): name for name in ledger.parts}
    reader = sidecar_sink()

    def describe(unit: int) -> PartFile | None:
        """Describe the one of a unit."""
        receipt = receipts.get(unit)
        if receipt is not None and receipt.won:
            found = receipt.sidecar
        else:
            name = sidecar_named(store, layout, part_of[unit], sink)
            if name and name not in ledger.sidecars:
                raise DataError(
                    "this table of failed rows is gone, and a part names it", where=layout.uri(name)
                )
            found = describe_part(store, layout, name, reader) if name else None
        if found is None or not remote:
            return found
        return dataclasses.replace(found, etag=ledger.sidecars[found.name].version)

    # A unit without any cannot name one: it is written before the commit.
    units = sorted({unit_of(name) for name in ledger.sidecars} & ledger.committed)
    with ThreadPoolExecutor(store.parallel) as pool:
        found = [one for one in pool.map(describe, units) if one is not None]
    return sorted(found, key=lambda one: one.name)
