"""The whole job: plan, run what is not committed, finish, report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from batchinfer import registry
from batchinfer.config import Fingerprint, Job, Machine, content_sha256, diff, fingerprint, resolve
from batchinfer.data import Entry, Receipt, RowError
from batchinfer.errors import BatchinferError, ExitCode, FingerprintError
from batchinfer.events import Event, RunFinished, RunStarted, Warned
from batchinfer.runner.budget import Budget
from batchinfer.runner.finish import finish
from batchinfer.runner.ledger import Ledger, ledger_of
from batchinfer.runner.messages import Ready, Start
from batchinfer.runner.output import begun, generations, probe, read_plan, require_empty, store_plan
from batchinfer.runner.plan import Plan, diff_inputs, listing, make_plan
from batchinfer.runner.process import InlineWorker, ProcessWorker, Worker
from batchinfer.runner.signals import Interrupts
from batchinfer.runner.supervisor import Supervisor
from batchinfer.storage import open_store

if TYPE_CHECKING:
    from batchinfer.protocols import Observer, Sink, Source
    from batchinfer.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What the output holds now, and what this run did for it.

    `rows_in == rows_ok + rows_error + rows_filtered`, over the whole output. `rows_reused` of
    `rows_in` were committed by earlier runs.
    """

    job: str
    run: str
    plan: str
    output: str
    exit_code: int
    rows_in: int
    rows_ok: int
    rows_error: int
    rows_filtered: int
    rows_reused: int
    units_total: int
    units_reused: int
    seconds: float
    errors: tuple[RowError, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """Rows that this run did per second of wall time, start-up included."""
        return (self.rows_in - self.rows_reused) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job against its output: what there is to do, and what is done."""

    job: Job
    source: Source
    sink: Sink
    store: Store
    plan: Plan
    ledger: Ledger
    generation: int
    stored: bool

    @property
    def pending(self) -> list[int]:
        """Units that are not committed, in order."""
        return [index for index in range(len(self.plan.units)) if index not in self.ledger.committed]

    def planned_rows(self, units: Sequence[int]) -> int:
        """Rows of some units, before `where` and `sample`."""
        return sum(self.plan.units[index][2] - self.plan.units[index][1] for index in units)


def prepare(job: Job) -> Prepared:
    """List the input and the output once each, and make or find the plan.

    Raises NoInputError, DataError (unreadable or drifting shards), FingerprintError (the output is
    another job's).
    """
    source: Source = registry.load("sources", job.input.format)(job.input)
    sink: Sink = registry.load("sinks", job.output.format)(job.output)
    store = open_store(job.output.path, job.output.storage_options)
    found = source.list_entries()
    _check_pin(job)
    mine = fingerprint(job)
    there = store.entries(job.output.path)
    numbers = generations(there, job.output.path)
    latest = numbers[-1] if numbers else 0
    plan = read_plan(store, job.output.path, latest) if latest else None
    if plan is not None and not _same(plan, mine, found):
        if begun(there, job.output.path, plan):
            raise _belongs_to_another(job, plan, mine, found)
        plan = None  # nothing of the earlier plan was ever committed: begin anew
    if plan is None:
        require_empty(there, job.output.path)
    stored = plan is not None
    plan = plan or make_plan(job, source, found, mine, suffix=sink.suffix)
    return Prepared(
        job=job,
        source=source,
        sink=sink,
        store=store,
        plan=plan,
        ledger=ledger_of(there, plan.layout(job.output.path)),
        generation=latest if stored else latest + 1,
        stored=stored,
    )


def run(job: Job, machine: Machine, observers: Sequence[Observer]) -> RunReport:
    """Run a job to its end and report. Raises what ended it early; observers hear of it first."""
    session = _Session(resolve(job, machine), observers)
    try:
        report = session.run()
    except BaseException as error:
        # A run that never began has no end to tell of: the error says it all.
        if session.announced:
            code = error.exit_code if isinstance(error, BatchinferError) else ExitCode.CRASH
            session.emit(RunFinished(exit_code=code, seconds=session.seconds, complete=False))
        raise
    else:
        session.emit(
            RunFinished(
                exit_code=0,
                seconds=report.seconds,
                complete=True,
                rows_ok=report.rows_ok,
                rows_error=report.rows_error,
                rows_filtered=report.rows_filtered,
            )
        )
        return report
    finally:
        for observer in observers:
            observer.close()


class _OtherPlanError(Exception):
    """Another process stored another plan of the same job."""


class _Session:
    """One run: what it found, what it did."""

    def __init__(self, job: Job, observers: Sequence[Observer]) -> None:
        self._job = job
        self._observers = observers
        self._run_id = secrets.token_hex(4)
        self._began = time.monotonic()
        self._receipts: dict[int, Receipt] = {}
        self._settings: dict[str, str] = {}
        self.announced = False
        self._budget = Budget(job)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def emit(self, event: Event) -> None:
        """Tell every observer."""
        for observer in self._observers:
            observer.on_event(event)

    def run(self) -> RunReport:
        """Prepare, run the pending units, finish."""
        try:
            return self._run(prepare(self._job))
        except _OtherPlanError:
            # Another process stored the same job, cut into other units, first: do as it does.
            return self._run(prepare(self._job))

    def _run(self, prepared: Prepared) -> RunReport:
        pending = prepared.pending
        devices = [device for device in self._devices() for _ in range(self._workers_per_device())]
        devices = devices[: max(len(pending), 1)]
        self._announce(prepared, pending, num_workers=len(devices) if pending else 0)
        if pending:
            probe(prepared.store, self._job.output.path, commit=self._job.output.commit)
            self._run_units(prepared, devices)
        layout = prepared.plan.layout(self._job.output.path)
        manifest = finish(prepared.store, layout, prepared.plan, prepared.sink, self._receipts)
        self._budget.judge(rows=manifest["rows"], failed=manifest["rows_error"])
        return self._report(prepared, pending, manifest)

    def _devices(self) -> tuple[str, ...]:
        devices = self._job.compute.devices
        assert isinstance(devices, tuple)
        return devices

    def _workers_per_device(self) -> int:
        return int(self._job.compute.workers_per_device)

    def _announce(self, prepared: Prepared, pending: Sequence[int], *, num_workers: int) -> None:
        rows_pending = prepared.planned_rows(pending)
        self.announced = True
        self.emit(
            RunStarted(
                job=self._job.name,
                run=self._run_id,
                units_total=len(prepared.plan.units),
                units_done=len(prepared.plan.units) - len(pending),
                rows_total=prepared.plan.num_rows,
                rows_done=prepared.plan.num_rows - rows_pending,
                num_workers=num_workers,
                model=self._job.model.version or self._job.model.path or self._job.model.entry or "",
                output=self._job.output.path,
            )
        )

    def _run_units(self, prepared: Prepared, devices: Sequence[str]) -> None:
        """Run the pending units. The plan is stored once a worker has found the job sound."""
        plan, stored = prepared.plan, prepared.stored

        def on_ready(ready: Ready) -> None:
            """Store the plan when the first worker found the job sound."""
            nonlocal stored
            self._settings = ready.settings
            if not stored:
                root = self._job.output.path
                winner = store_plan(prepared.store, root, plan, generation=prepared.generation)
                if winner.plan8 != plan.plan8:
                    raise _OtherPlanError
                stored = True

        with Interrupts() as interrupts:
            Supervisor(
                starts=[self._start(plan, worker, device) for worker, device in enumerate(devices)],
                spawn=self._spawner(),
                units=(plan.unit(index) for index in prepared.pending),
                emit=self.emit,
                on_ready=on_ready,
                on_done=self._on_done,
                interrupts=interrupts,
            ).run()

    def _on_done(self, receipt: Receipt) -> None:
        self._receipts[receipt.unit] = receipt
        self._budget.add(receipt)
        if not receipt.won:
            self.emit(
                Warned(
                    code="already_committed",
                    message=f"unit {receipt.unit} had been committed by another process; its output stands",
                )
            )

    def _start(self, plan: Plan, worker: int, device: str) -> Start:
        metadata = {
            "batchinfer.plan": plan.plan8,
            "batchinfer.fingerprint": plan.fingerprint,
            "batchinfer.model_version": self._job.model.version or "",
        }
        return Start(
            job=self._job.to_message(),
            schema=plan.schema,
            run=self._run_id,
            worker=worker,
            device=device,
            threads=int(self._job.compute.threads),
            layout=asdict(plan.layout(self._job.output.path)),
            metadata=metadata,
        )

    def _spawner(self) -> Callable[[Start], Worker]:
        if any(uri.startswith("memory://") for uri in _urls(self._job)):
            return lambda start: InlineWorker()  # noqa: ARG005 - told over its channel
        threads = str(self._job.compute.threads)
        environment = {
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        return lambda start: ProcessWorker(environment=environment)  # noqa: ARG005 - see above

    def _report(self, prepared: Prepared, pending: Sequence[int], manifest: Mapping[str, Any]) -> RunReport:
        plan = prepared.plan
        return RunReport(
            job=self._job.name,
            run=self._run_id,
            plan=plan.plan8,
            output=self._job.output.path,
            exit_code=0,
            rows_in=plan.num_rows,
            rows_ok=manifest["rows"] - manifest["rows_error"],
            rows_error=manifest["rows_error"],
            rows_filtered=plan.num_rows - manifest["rows"],
            rows_reused=plan.num_rows - prepared.planned_rows(pending),
            units_total=len(plan.units),
            units_reused=len(plan.units) - len(pending),
            seconds=self.seconds,
            errors=self._budget.samples,
            settings=self._settings,
        )


def _check_pin(job: Job) -> None:
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


def _same(plan: Plan, mine: Fingerprint, found: Sequence[Entry]) -> bool:
    return plan.fingerprint == mine.digest and plan.inputs == listing(found)


def _belongs_to_another(job: Job, plan: Plan, mine: Fingerprint, found: Sequence[Entry]) -> FingerprintError:
    changes = diff(plan.parts, mine.parts) + diff_inputs(plan.inputs, listing(found))
    listed = "\n".join(f"  changed: {change}" for change in changes)
    return FingerprintError(
        f"this output belongs to another job\n{listed}",
        where=job.output.path,
        hint="write to another output.path, or undo the change to resume",
    )


def _urls(job: Job) -> list[str]:
    paths = job.input.path if isinstance(job.input.path, tuple) else (job.input.path,)
    return [*paths, job.output.path]
