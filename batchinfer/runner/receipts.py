"""What the last run said of the output, held against what the output is now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.runner.output import Seal, below

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.storage import Store

_FOLDER = "_batchinfer/runs/"
_FORMAT = 1


def contradictions(
    store: Store, root: str, entries: Sequence[Entry], manifest: Mapping[str, Any], seal: Seal
) -> Iterator[str]:
    """Say where the receipt of the run that completed an output disagrees with its manifest.

    Only the newest of them counts: a part that was lost and computed again gives another manifest. No
    receipt is no contradiction, nor is one of another release's format.
    """
    names = [entry for entry in entries if below(root, entry.uri).startswith(_FOLDER)]
    receipts = [entry for entry in names if entry.uri.endswith(".json")]
    for entry in sorted(receipts, key=lambda entry: (entry.modified, entry.uri), reverse=True):
        name = below(root, entry.uri)
        try:
            receipt = json.loads(store.read(entry.uri))
            if receipt["format"] != _FORMAT:
                continue
            plan, rows = receipt["plan"], receipt["output_rows"]
            if plan["id"] != seal.plan or rows is None:
                continue
            said = {
                "manifest": plan["manifest_sha256"],
                "rows": rows["ok"] + rows["error"],
                "rows_error": rows["error"],
            }
        except (ValueError, KeyError, TypeError, RecursionError):
            yield f"{name}: the receipt is damaged"
            continue
        if said["manifest"] != seal.manifest_sha256:
            yield f"{name}: the run wrote another manifest than the one that is there (its sha256 differs)"
        for key in ("rows", "rows_error"):
            if said[key] != manifest[key]:
                yield f"{name}: the run counted {said[key]} {key}, the manifest says {manifest[key]}"
        return
