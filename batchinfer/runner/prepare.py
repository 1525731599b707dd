"""A job against its output: which plan to follow, what is committed, and what there is to do."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchinfer import registry
from batchinfer.config import Fingerprint, Job, Tuned, content_sha256, diff, fingerprint, settled
from batchinfer.data import Entry
from batchinfer.errors import FingerprintError, JobFileError
from batchinfer.runner.finish import manifest_name
from batchinfer.runner.ledger import Ledger, ledger_of
from batchinfer.runner.model_state import model_state
from batchinfer.runner.output import below, generations, plan_name, read_plan, require_empty
from batchinfer.runner.plan import Plan, diff_inputs, listing, make_plan
from batchinfer.runner.presence import Beat, beats, died_here
from batchinfer.runner.tuned import model_hash, only_batches
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.protocols import Sink, Source
    from batchinfer.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run found. `stored`: the plan is beside the output already; `finished`: its manifest too.
    `arrivals` are files that came since and wait until this plan is complete; `model_state` is how the
    model's files were before they were hashed, `model_hash` names their content; `beats` are the signs of
    life of other processes. The job's batches are cut as the plan says."""

    job: Job
    source: Source
    sink: Sink
    store: Store
    plan: Plan
    ledger: Ledger
    stored: bool
    finished: bool
    spilled: frozenset[int]
    arrivals: int
    model_state: dict[str, str]
    model_hash: str
    beats: tuple[Beat, ...]

    @property
    def pending(self) -> list[int]:
        """Units that are not committed, in order."""
        return [index for index in range(len(self.plan.units)) if index not in self.ledger.committed]

    def planned_rows(self, units: Sequence[int]) -> int:
        """Rows of some units, before `where` and `sample`."""
        return sum(self.plan.units[index][2] - self.plan.units[index][1] for index in units)


class _Match(enum.Enum):
    """How a stored plan stands to the job and its input as they are now."""

    SAME = enum.auto()
    GROWN = enum.auto()
    OTHER = enum.auto()


def prepare(job: Job, *, force: bool = False, tuned: Tuned | None = None) -> Prepared:
    """List the input and the output once each, and make or find the plan.

    A plan that is made now cuts batches as they were `tuned`; one that is stored stays. `force` begins a
    new generation, unless one of this very job is begun and not finished. Raises NoInputError, DataError
    (unreadable or drifting shards), FingerprintError (the output is another job's).
    """
    _check_modes(job, force=force)
    source: Source = registry.load("sources", job.input.format)(job.input)
    sink: Sink = registry.load("sinks", job.output.format)(job.output)
    root = job.output.path
    store = open_store(root, job.output.storage_options)
    found = source.list_entries()
    state = model_state(job)
    check_pin(job)
    mine = fingerprint(job)
    there = store.entries(root)
    numbers = generations(there, root)
    stored = read_plan(store, root, numbers[-1]) if numbers else None
    parent: Plan | None = None
    arrivals = 0
    finished = False
    if stored is None:
        require_empty(there, root)
    else:
        match = _match(job, stored, mine, found)
        finished = _is_finished(there, root, stored.plan8)
        if force and (finished or match is not _Match.SAME or stored.retry is not None):
            stored = None
        elif match is _Match.GROWN and finished:
            stored, parent = None, stored
        elif match is _Match.GROWN:
            arrivals = len(found) - len(stored.inputs)
        elif match is _Match.OTHER:
            # A retry stands for a complete output, also where nothing of it is committed.
            if stored.retry is not None or _begun(there, root, stored):
                raise _belongs_to_another(job, stored, mine, found)
            # Nothing of it was ever committed, and nobody is at it: begin anew.
            parent = _last_finished(store, there, root, numbers) if job.input.incremental else None
            stored = None
    plan = stored or make_plan(
        job,
        source,
        found,
        mine,
        suffix=sink.suffix,
        generation=numbers[-1] + 1 if numbers else 1,
        parent=parent,
        batches=only_batches(job, tuned),
    )
    return Prepared(
        job=settled(job, plan.batches) if plan.batches else job,
        source=source,
        sink=sink,
        store=store,
        plan=plan,
        ledger=ledger_of(there, plan.layout(root)),
        stored=stored is not None,
        finished=finished and stored is not None,
        spilled=plan.layout(root).spilled_units(below(root, entry.uri) for entry in there),
        arrivals=arrivals,
        model_state=state,
        model_hash=model_hash(job, mine),
        beats=tuple(beats(there, root, plan.plan8)),
    )


def _check_modes(job: Job, *, force: bool) -> None:
    """Refuse what cannot be kept. Raises JobFileError."""
    if job.input.incremental and job.input.format == "files":
        raise JobFileError(
            f"{job.place(('input', 'incremental'))}  input.incremental: files are read as groups, which "
            "change with every file that comes",
            hint="give each delivery a folder and an output of its own, or write the files as Parquet",
        )
    if job.output.commit == "deterministic" and (force or job.input.incremental):
        # `_SUCCESS` must never go back to an earlier generation, which takes a conditional write.
        raise JobFileError(
            f"{job.place(('output', 'commit'))}  output.commit: deterministic allows one generation: "
            "neither --force nor input.incremental",
            hint="write to another output.path, or use a store with conditional writes",
        )


def _match(job: Job, plan: Plan, mine: Fingerprint, found: Sequence[Entry]) -> _Match:
    """Compare a stored plan with the job. Incremental input may grow, and may lose what was done."""
    if plan.fingerprint != mine.digest:
        return _Match.OTHER
    now = listing(found)
    if sorted(plan.inputs) == sorted(now):
        return _Match.SAME
    if not job.input.incremental:
        return _Match.OTHER
    planned = {uri: (size, version) for uri, size, version in plan.inputs}
    if any(planned.get(uri, (size, version)) != (size, version) for uri, size, version in now):
        return _Match.OTHER
    return _Match.GROWN if any(uri not in planned for uri, _, _ in now) else _Match.SAME


def _is_finished(there: Sequence[Entry], root: str, plan8: str) -> bool:
    name = manifest_name(plan8)
    return any(below(root, entry.uri) == name for entry in there)


def _begun(there: Sequence[Entry], root: str, plan: Plan) -> bool:
    """Tell whether a plan has a committed unit, or a process that may be at its first one."""
    return bool(ledger_of(there, plan.layout(root)).committed) or any(
        not died_here(beat.owner) for beat in beats(there, root, plan.plan8)
    )


def _last_finished(store: Store, there: Sequence[Entry], root: str, numbers: Sequence[int]) -> Plan | None:
    """Return the newest plan that was finished."""
    for number in reversed(numbers):
        if _is_finished(there, root, plan_name(store, root, number)):
            return read_plan(store, root, number)
    return None


def check_pin(job: Job) -> None:
    """Hold the model against `model.sha256`. Raises FingerprintError for another one."""
    if job.model.sha256 is None or job.model.path is None:
        return
    found = content_sha256(job.model.path)
    if found != job.model.sha256:
        raise FingerprintError(
            f"the model has sha256 {found}, and model.sha256 asks for {job.model.sha256}",
            where=job.model.path,
            hint="restore the model, or update model.sha256",
        )


def _belongs_to_another(job: Job, plan: Plan, mine: Fingerprint, found: Sequence[Entry]) -> FingerprintError:
    changes = diff(plan.parts, mine.parts) + diff_inputs(plan.inputs, listing(found))
    listed = "\n".join(f"  changed: {change}" for change in changes)
    grown = plan.fingerprint == mine.digest and all(change.startswith("input:") for change in changes)
    ways = "write to another output.path, undo the change to resume, or begin a new generation with --force"
    return FingerprintError(
        f"this output belongs to another job\n{listed}",
        where=job.output.path,
        hint=f"{ways}; input.incremental: true adds files that are new" if grown else ways,
    )
