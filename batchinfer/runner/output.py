"""The output folder as a run finds it: whose it is, and which plan it follows.

`_batchinfer/GEN/0001.json` names the plan; each is created once, so that of two processes which
start at the same moment one decides and the other follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchinfer.data import Entry
from batchinfer.engine.publish import create_once
from batchinfer.errors import AccessError, DataError, FingerprintError, UnsafeStoreError
from batchinfer.runner.ledger import ledger_of
from batchinfer.runner.plan import Plan
from batchinfer.storage import AlreadyExists, ObjectMissing

if TYPE_CHECKING:
    from batchinfer.storage import Store

_GENERATION = re.compile(r"_batchinfer/GEN/(\d{4})\.json")


def generations(entries: Sequence[Entry], root: str) -> list[int]:
    """Return the numbers of the plans that an output has had, in order."""
    base = root.rstrip("/") + "/"
    names = (_GENERATION.fullmatch(entry.uri.removeprefix(base)) for entry in entries)
    return sorted(int(name[1]) for name in names if name)


def read_plan(store: Store, root: str, generation: int) -> Plan:
    """Read the plan that a generation names. Raises DataError where it is damaged."""
    uri = f"{root.rstrip('/')}/_batchinfer/GEN/{generation:04d}.json"
    try:
        plan8 = json.loads(store.read(uri))["plan"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("the register of plans is damaged", where=uri) from error
    where = f"{root.rstrip('/')}/_batchinfer/{plan8}/plan.json"
    plan = Plan.from_json(store.read(where), where=where)
    if plan.plan8 != plan8:
        raise DataError("the stored plan was changed by somebody else", where=where)
    return plan


def find_plan(store: Store, root: str) -> Plan | None:
    """Return the plan that an output follows, or None for an output that has none."""
    found = generations(store.entries(f"{root.rstrip('/')}/_batchinfer/GEN"), root)
    return read_plan(store, root, found[-1]) if found else None


def require_empty(entries: Sequence[Entry], root: str) -> None:
    """Refuse a folder with files that no plan of ours accounts for."""
    base = root.rstrip("/") + "/"
    names = [entry.uri.removeprefix(base) for entry in entries]
    strangers = [name for name in names if not name.startswith("_batchinfer/")]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise FingerprintError(
            f"the output folder holds files that this job did not write: {strangers[0]}{more}",
            where=root,
            hint="choose an empty output.path",
        )


def store_plan(store: Store, root: str, plan: Plan, *, generation: int) -> Plan:
    """Make a plan the one that every process follows; return the one that won.

    Raises FingerprintError when another process has just begun another job here.
    """
    base = f"{root.rstrip('/')}/_batchinfer"
    create_once(store, f"{base}/{plan.plan8}/plan.json", plan.to_json())
    register = json.dumps({"plan": plan.plan8, "fingerprint": plan.fingerprint}).encode()
    if create_once(store, f"{base}/GEN/{generation:04d}.json", register):
        return plan
    winner = read_plan(store, root, generation)
    if (winner.fingerprint, winner.inputs) != (plan.fingerprint, plan.inputs):
        raise FingerprintError(
            "another process has just begun a different job on this output",
            where=root,
            hint="give each job an output.path of its own",
        )
    return winner


def begun(entries: Sequence[Entry], root: str, plan: Plan) -> bool:
    """Tell whether any unit of a plan is committed."""
    return bool(ledger_of(entries, plan.layout(root)).committed)


def probe(store: Store, root: str, *, commit: str) -> None:
    """Check, on the very path that commits take, that the second of two creates is refused.

    Raises AccessError where nothing may be written, UnsafeStoreError where the store does not keep
    the promise that exactly-once output rests on.
    """
    uri = f"{root.rstrip('/')}/_batchinfer/probe"
    try:
        store.delete(uri)
        store.create(uri, b"first")
        try:
            store.create(uri, b"second")
        except AlreadyExists:
            safe = store.read(uri) == b"first" and store.conditional
        else:
            safe = False
        store.delete(uri)
    except AlreadyExists:
        return  # another process is probing at this very moment: it will tell
    except ObjectMissing as error:
        raise AccessError("what was written cannot be read back", where=root) from error
    if not safe and commit == "conditional":
        raise UnsafeStoreError(
            "this store cannot create a file only if its name is free, so two writers could both "
            "believe that they committed",
            where=root,
            hint="write to a store with conditional writes, or declare what you can promise: "
            "output.commit: deterministic (the same unit always gives the same bytes) "
            "or single-writer (never two runs at once)",
        )
