"""An output looked at from outside: how far it is, and whether it is what its manifest says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer import registry
from batchinfer.errors import DataError, NoInputError
from batchinfer.runner.ledger import ledger_of
from batchinfer.runner.output import generations, read_plan
from batchinfer.storage import ObjectMissing, open_store

if TYPE_CHECKING:
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatus:
    """How far an output is. Rows are planned rows, before `where` and `sample`."""

    job: str
    plan: str
    output: str
    state: str
    units_total: int
    units_done: int
    rows_total: int
    rows_done: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `verify` found. No problem: the output is what the manifest says."""

    output: str
    num_parts: int
    num_rows: int
    num_errors: int
    problems: tuple[str, ...]


def read_status(root: str, options: Mapping[str, Any]) -> OutputStatus:
    """Read the progress of an output from its listing. Raises NoInputError where there is none."""
    _, plan, entries = _open(root, options)
    ledger = ledger_of(entries, plan.layout(root))
    done = [plan.units[index] for index in ledger.committed]
    sealed = any(entry.uri == f"{root.rstrip('/')}/_SUCCESS" for entry in entries)
    return OutputStatus(
        job=plan.job,
        plan=plan.plan8,
        output=root,
        state="complete"
        if sealed
        else "all units committed"
        if len(done) == len(plan.units)
        else "unfinished",
        units_total=len(plan.units),
        units_done=len(done),
        rows_total=plan.num_rows,
        rows_done=sum(stop - start for _, start, stop in done),
        num_bytes=sum(entry.size_bytes for entry in ledger.parts.values()),
    )


def verify_output(root: str, options: Mapping[str, Any], *, deep: bool) -> Verdict:
    """Compare an output with its manifest: names and sizes, or (`deep`) every byte and row count.

    Raises NoInputError where there is no output, DataError where it was never finished.
    """
    store, plan, entries = _open(root, options)
    layout = plan.layout(root)
    manifest = _manifest(store, root)
    ledger = ledger_of(entries, layout)
    sink = registry.load("sinks", "jsonl" if plan.suffix == ".jsonl" else "parquet")
    counter = sink(sink.Options.model_construct())
    problems = [f"{name}: is not in the manifest" for name in ledger.aliens]
    listed = {part["name"] for part in manifest["parts"]}
    problems += [f"{name}: is not in the manifest" for name in sorted(ledger.parts.keys() - listed)]
    for part in manifest["parts"]:
        name = part["name"]
        if name not in ledger.parts:
            problems.append(f"{name}: is missing")
        elif ledger.parts[name].size_bytes != part["num_bytes"]:
            size = ledger.parts[name].size_bytes
            problems.append(f"{name}: has {size} bytes, the manifest says {part['num_bytes']}")
        elif deep:
            problems += _deep(store.read(layout.uri(name)), part, counter)
    return Verdict(
        output=root,
        num_parts=len(manifest["parts"]),
        num_rows=manifest["rows"],
        num_errors=manifest["rows_error"],
        problems=tuple(problems),
    )


def _open(root: str, options: Mapping[str, Any]) -> tuple[Store, Plan, list[Any]]:
    store = open_store(root, options)
    entries = store.entries(root)
    numbers = generations(entries, root)
    if not numbers:
        raise NoInputError("no batchinfer output is here", where=root, hint="name the job's output.path")
    return store, read_plan(store, root, numbers[-1]), entries


def _manifest(store: Store, root: str) -> dict[str, Any]:
    base = root.rstrip("/")
    try:
        seal = json.loads(store.read(f"{base}/_SUCCESS"))
    except ObjectMissing:
        raise DataError(
            "the output is not finished: there is no _SUCCESS",
            where=root,
            hint="run the job again: it resumes",
        ) from None
    except ValueError as error:
        raise DataError("is damaged", where=f"{base}/_SUCCESS") from error
    data = store.read(f"{base}/{seal['manifest']}")
    if hashlib.sha256(data).hexdigest() != seal["manifest_sha256"]:
        raise DataError("the manifest was changed after the run", where=f"{base}/{seal['manifest']}")
    manifest: dict[str, Any] = json.loads(data)
    return manifest


def _deep(data: bytes, part: Mapping[str, Any], counter: Any) -> list[str]:
    """Check every byte of a part, and that it holds the rows it should."""
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        return [f"{part['name']}: its content changed (sha256 differs)"]
    try:
        counted = counter.count(data)
    except DataError as error:
        return [f"{part['name']}: {error.message}"]
    if counted != (part["num_rows"], part["num_errors"]):
        return [f"{part['name']}: holds {counted[0]} rows, the manifest says {part['num_rows']}"]
    return []
