"""`retry`: the plan that does failed rows again. It has the units in which such rows are, and keeps all other
parts of its parent. Once it is stored, it is a plan like any other: `run` resumes it too, and seals it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchinfer import registry
from batchinfer.config import Fingerprint, Job, diff, fingerprint, settled
from batchinfer.data import Again
from batchinfer.engine.again import numbers_again
from batchinfer.errors import DataError, FingerprintError, JobFileError, NoInputError
from batchinfer.runner.finish import files_of
from batchinfer.runner.inspection import read_manifest
from batchinfer.runner.ledger import ledger_of, plan_of, unit_of
from batchinfer.runner.model_state import model_state
from batchinfer.runner.output import below, generations, plan_name, read_plan, read_seal
from batchinfer.runner.plan import Plan, Retry
from batchinfer.runner.prepare import Prepared, check_pin
from batchinfer.runner.presence import beats
from batchinfer.runner.tuned import model_hash
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.data import Entry, Shard
    from batchinfer.protocols import Sink
    from batchinfer.storage import Store

_SHAPING = ("format", "input", "output", "errors")
"""Parts of a fingerprint that no mending may change: what the rows are, and what is kept of each."""


class NothingToRetry(Exception):
    """No failed row is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrial:
    """What is to be done again: failed rows with these values in their `_error`. `mended`: the job may have
    changed, in what computes the rows."""

    where: Mapping[str, str]
    mended: bool

    def prepare(self, job: Job) -> Prepared:
        """Plan it, or find the plan of a retry that was begun and not finished.

        Raises NothingToRetry, NoInputError where there is no output, DataError where it is not finished,
        FingerprintError where the job is another one now.
        """
        root = job.output.path
        store = open_store(root, job.output.storage_options)
        sink: Sink = registry.load("sinks", job.output.format)(job.output)
        if not hasattr(sink, "reread"):
            raise JobFileError(f"parts of the format {job.output.format!r} cannot be read and written again")
        if job.output.commit == "deterministic":
            # `_SUCCESS` must never go back to an earlier generation, which takes a conditional write.
            raise JobFileError(
                f"{job.place(('output', 'commit'))}  output.commit: deterministic allows one generation, and "
                "a retry begins another",
                hint="write to a store with conditional writes",
            )
        state = model_state(job)
        check_pin(job)
        mine = fingerprint(job)
        there = store.entries(root)
        numbers = generations(there, root)
        if not numbers:
            raise NoInputError("no batchinfer output is here", where=root, hint="name the job's output.path")
        plan, seal = read_plan(store, root, numbers[-1]), read_seal(store, root)
        resumed = plan.retry is not None and (seal is None or seal.plan != plan.plan8)
        if resumed and plan.fingerprint != mine.digest and seal is not None:
            # It was begun with another job: go back to what is complete, and begin anew.
            plan, resumed = read_plan(store, root, seal.generation), False
        if resumed:
            self._check_same(plan, mine, root)
        if not resumed:
            if seal is None or seal.plan != plan.plan8:
                raise DataError(
                    "the output is not finished: rows of it may still fail",
                    where=root,
                    hint="run the job first: it resumes",
                )
            self._check(plan, mine, root)
            manifest = read_manifest(store, root, seal)
            number = numbers[-1] + 1
            plan = _plan(store, root, there, plan, manifest, sink, mine, self.where, generation=number)
        return Prepared(
            job=settled(job, plan.batches) if plan.batches else job,
            source=registry.load("sources", job.input.format)(job.input),
            sink=sink,
            store=store,
            plan=plan,
            ledger=ledger_of(there, plan.layout(root)),
            stored=resumed,
            finished=False,
            spilled=plan.layout(root).spilled_units(below(root, entry.uri) for entry in there),
            arrivals=0,
            model_state=state,
            model_hash=model_hash(job, mine),
            beats=tuple(beats(there, root, plan.plan8)),
        )

    def _check_same(self, plan: Plan, mine: Fingerprint, root: str) -> None:
        """Refuse to finish a retry that another job began. Raises FingerprintError."""
        if plan.fingerprint != mine.digest:
            listed = "\n".join(f"  changed: {change}" for change in diff(plan.parts, mine.parts))
            raise FingerprintError(
                f"a retry of another job is not finished\n{listed}",
                where=root,
                hint="finish it with its own job first",
            )

    def told(self, plan: Plan) -> str | None:
        """Say that a plan, begun earlier, does other rows than are asked for; None where it does these."""
        if plan.retry is None or dict(plan.retry.where) == dict(self.where):
            return None
        begun = " ".join(f"--where {key}={value}" for key, value in plan.retry.where.items())
        return (
            f"this finishes a retry that was begun {f'with {begun}' if begun else 'for all failed rows'}; "
            "repeat the command for the rows that it asks for"
        )

    def _check(self, plan: Plan, mine: Fingerprint, root: str) -> None:
        """Refuse a job that is not the one that wrote the output. Raises FingerprintError."""
        if plan.fingerprint == mine.digest:
            return
        shaping = [name for name in _SHAPING if plan.parts.get(name) != mine.parts.get(name)]
        changes = diff(plan.parts, mine.parts)
        listed = "\n".join(f"  changed: {change}" for change in changes)
        if shaping or not self.mended:
            raise FingerprintError(
                f"the job is not the one that wrote this output\n{listed}",
                where=root,
                hint=f"rows of one output cannot differ in {' and '.join(shaping)}: compute all anew with "
                "`run --force`"
                if shaping
                else "with --mended, the failed rows are done by the job as it is now, and all others stay "
                "as they are; or undo the change",
            )


def plans_of(store: Store, root: str, entries: Sequence[Entry], names: Sequence[str]) -> dict[str, Plan]:
    """Read the plans that a manifest names, by their eight digits, oldest first."""
    found = {}
    for number in generations(entries, root):
        if (plan8 := plan_name(store, root, number)) in names:
            found[plan8] = read_plan(store, root, number)
    return found


def _plan(
    store: Store,
    root: str,
    entries: Sequence[Entry],
    parent: Plan,
    manifest: Mapping[str, Any],
    sink: Sink,
    mine: Fingerprint,
    where: Mapping[str, str],
    *,
    generation: int,
) -> Plan:
    """Find the units with failed rows that are asked for. Raises NothingToRetry where there are none."""
    plans = plans_of(store, root, entries, manifest["plans"])
    files = _files_by_unit(manifest)

    def asked(again: Again) -> bool:
        """Tell whether a unit has rows that are asked for."""
        return len(numbers_again(store, root, again, sink)) > 0

    suspects = [(key, Again(parts=parts, sidecar=sidecar, where=where)) for key, (parts, sidecar) in files]
    with ThreadPoolExecutor(store.parallel) as pool:
        found = list(pool.map(asked, [again for _, again in suspects]))
    order = list(plans)
    chosen = [one for one, is_asked in zip(suspects, found, strict=True) if is_asked]
    chosen.sort(key=lambda one: (order.index(one[0][0]), one[0][1]))
    if not chosen:
        raise NothingToRetry
    shards: list[Shard] = []
    units = []
    for (plan8, unit), _ in chosen:
        at, start, stop = plans[plan8].units[unit]
        shard = plans[plan8].shards[at]
        if not shards or shards[-1].uri != shard.uri:
            shards.append(dataclasses.replace(shard, index=len(shards)))
        units.append((len(shards) - 1, start, stop))
    return dataclasses.replace(
        parent,
        generation=generation,
        parent=parent.plan8,
        fingerprint=mine.digest,
        parts=dict(mine.parts),
        shards=tuple(shards),
        units=tuple(units),
        records=any(plans[plan8].records for (plan8, _), _ in chosen),
        retry=Retry(where=dict(where), units=tuple((again.parts, again.sidecar) for _, again in chosen)),
    )


def _files_by_unit(
    manifest: Mapping[str, Any],
) -> list[tuple[tuple[str, int], tuple[tuple[str, ...], str]]]:
    """Return the parts and the sidecar of each unit in which rows failed, by plan and unit."""
    apart = {sidecar["name"] for sidecar in manifest["sidecars"]}
    parts: dict[tuple[str, int], list[str]] = {}
    sidecars: dict[tuple[str, int], str] = {}
    failed = set()
    for name, file in sorted(files_of(manifest).items()):
        key = (plan_of(name) or "", unit_of(name))
        if name in apart:
            sidecars[key] = name
        else:
            parts.setdefault(key, []).append(name)
        if file["num_errors"]:
            failed.add(key)
    return [(key, (tuple(parts.get(key, ())), sidecars.get(key, ""))) for key in sorted(failed)]
