"""The output folder as a run finds it: whose it is, which plan it follows, and whether it is sealed.

`_batchinfer/GEN/000n.json` names the n-th plan; each is created once, so that of two processes which
start at the same moment one decides and the other follows. `_SUCCESS` names the generation that readers
should use, and only ever moves forward.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer.crash import crash_point
from batchinfer.engine.commit import FORMAT_VERSION
from batchinfer.engine.publish import create_once, sha256
from batchinfer.errors import AccessError, DataError, FingerprintError, UnsafeStoreError
from batchinfer.runner.plan import Plan, unreadable_format
from batchinfer.storage import AlreadyExists, ObjectMissing

if TYPE_CHECKING:
    from batchinfer.data import Entry
    from batchinfer.storage import Store

_GENERATION = re.compile(r"_batchinfer/GEN/(\d{4,})\.json")


@dataclass(frozen=True, slots=True)
class Seal:
    """What `_SUCCESS` says, and the version at which it was read."""

    generation: int
    plan: str
    manifest: str
    manifest_sha256: str
    version: str


def below(root: str, uri: str) -> str:
    """Return a name relative to the root."""
    return uri.removeprefix(root.rstrip("/") + "/")


def generations(entries: Sequence[Entry], root: str) -> list[int]:
    """Return the numbers of the plans that an output has had, in order."""
    names = (_GENERATION.fullmatch(below(root, entry.uri)) for entry in entries)
    return sorted(int(name[1]) for name in names if name)


def latest_generation(store: Store, root: str) -> int:
    """Ask which plan is the newest now; 0 where there is none."""
    found = generations(store.entries(f"{root.rstrip('/')}/_batchinfer/GEN"), root)
    return found[-1] if found else 0


def plan_name(store: Store, root: str, generation: int) -> str:
    """Read which plan a generation follows. Raises DataError where the register is damaged."""
    uri = f"{root.rstrip('/')}/_batchinfer/GEN/{generation:04d}.json"
    return str(read_control(store, uri, "register of plans", "plan")["plan"])


def read_plan(store: Store, root: str, generation: int) -> Plan:
    """Read the plan that a generation names. Raises DataError where it is damaged."""
    plan8 = plan_name(store, root, generation)
    where = f"{root.rstrip('/')}/_batchinfer/{plan8}/plan.json"
    data = store.read(where)
    if sha256(data)[:8] != plan8:
        # A newer release may write it otherwise: what it says of itself comes first.
        Plan.from_json(data, where=where)
        raise DataError("the stored plan was changed by somebody else", where=where)
    plan = Plan.from_json(data, where=where)
    # A cached property: the canonical text need not be made again for what was just checked.
    plan.__dict__["plan8"] = plan8
    return plan


def read_control(store: Store, uri: str, what: str, *keys: str) -> dict[str, Any]:
    """Read one of the small JSON files beside the parts; it must have these keys.

    Raises DataError where it is damaged, FingerprintError where a newer release wrote it.
    """
    try:
        found = json.loads(store.read(uri))
        version = found["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"the {what} is damaged: {error}", where=uri) from error
    if version != FORMAT_VERSION:
        raise unreadable_format(what, version, uri)
    missing = [key for key in keys if key not in found]
    if missing:
        raise DataError(f"the {what} is damaged: it has no {missing[0]!r}", where=uri)
    return dict(found)


def control(**values: Any) -> bytes:
    """Return the text of a small JSON file."""
    return json.dumps({"format": FORMAT_VERSION, **values}, sort_keys=True).encode()


def require_empty(entries: Sequence[Entry], root: str) -> None:
    """Refuse a folder with files that no plan of ours accounts for."""
    names = [below(root, entry.uri) for entry in entries]
    strangers = [name for name in names if not name.startswith("_batchinfer/")]
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise FingerprintError(
            f"the output folder holds files that this job did not write: {strangers[0]}{more}",
            where=root,
            hint="choose an empty output.path",
        )


def store_plan(store: Store, root: str, plan: Plan) -> Plan:
    """Make a plan the one that every process follows; return the one that won.

    The winner may be cut otherwise, or know of other files: the caller then looks again. Raises
    FingerprintError when another process has just begun another job here.
    """
    base = f"{root.rstrip('/')}/_batchinfer"
    crash_point("plan.before_put")
    create_once(store, f"{base}/{plan.plan8}/plan.json", plan.to_json())
    crash_point("plan.after_put")
    register = control(plan=plan.plan8, fingerprint=plan.fingerprint)
    crash_point("gen.before")
    first = create_once(store, f"{base}/GEN/{plan.generation:04d}.json", register)
    crash_point("gen.after")
    if first:
        return plan
    winner = read_plan(store, root, plan.generation)
    crash_point("plan.readback")
    if winner.fingerprint != plan.fingerprint:
        raise FingerprintError(
            "another process has just begun a different job on this output",
            where=root,
            hint="give each job an output.path of its own",
        )
    return winner


def read_seal(store: Store, root: str) -> Seal | None:
    """Read `_SUCCESS`, None where there is none. Raises DataError where it is damaged."""
    uri = f"{root.rstrip('/')}/_SUCCESS"
    # The version first: what is read after it can only be newer, and is then refused by `replace`.
    entry = next((entry for entry in store.glob(uri) if entry.uri == uri), None)
    try:
        found = read_control(store, uri, "_SUCCESS file")
        return Seal(
            generation=int(found["generation"]),
            plan=str(found["plan"]),
            manifest=str(found["manifest"]),
            manifest_sha256=str(found["manifest_sha256"]),
            version=entry.version if entry else "",
        )
    except ObjectMissing:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the _SUCCESS file is damaged: {error}", where=uri) from error


def seal(store: Store, root: str, plan: Plan, manifest: bytes, facts: Mapping[str, Any]) -> bool:
    """Write `_SUCCESS`, unless it names a later generation already; say whether it names this one."""
    uri = f"{root.rstrip('/')}/_SUCCESS"
    text = {
        "format": FORMAT_VERSION,
        "generation": plan.generation,
        "plan": plan.plan8,
        "manifest": f"_batchinfer/{plan.plan8}/manifest.json",
        "manifest_sha256": sha256(manifest),
        **facts,
    }
    data = json.dumps(text, indent=1, sort_keys=True).encode()
    while True:
        there = read_seal(store, root)
        if there is None:
            if create_once(store, uri, data):
                return True
            continue
        if there.generation > plan.generation:
            return False
        if there.generation == plan.generation and there.manifest_sha256 == text["manifest_sha256"]:
            return True
        try:
            store.replace(uri, data, version=there.version)
        except (AlreadyExists, ObjectMissing):
            continue  # somebody else moved it: look again


def probe(store: Store, root: str, *, commit: str) -> None:
    """Check, on the very path that commits take, that the second of two creates is refused.

    Raises AccessError where nothing may be written, UnsafeStoreError where the store does not keep
    the promise that exactly-once output rests on.
    """
    # A name of its own: two processes that probe at once must not see each other.
    uri = f"{root.rstrip('/')}/_batchinfer/probe-{secrets.token_hex(4)}"
    try:
        store.create(uri, b"first")
        try:
            store.create(uri, b"second")
        except AlreadyExists:
            safe = store.read(uri) == b"first" and store.conditional
        else:
            safe = False
        store.delete(uri)
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
